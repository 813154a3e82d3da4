//! The attack suite: one file per row of docs/ATTACKS.md, named by its id.
//!
//! ```text
//! computer (the attacker, root inside) ──► gate ──► internet of the test's own, with a witness
//! ```
//!
//! Each row shows (1) the refusal as the attacker sees it, and that it comes at once, (2) the record
//! that `den net log` keeps of it, (3) that no byte of a canary arrived, and (4) that the same thing
//! done rightly works: an attack that fails because nothing works shows nothing.

mod world;

mod eg01;
mod eg02;
mod eg03;
mod eg04;
mod eg05;
mod eg06;
mod eg07;
mod eg08;
mod eg09;
mod eg10;
mod eg11;
mod eg12;
mod eg13;
mod eg14;
mod eg15;
mod eg16;
mod eg17;
mod eg18;
mod eg19;
mod eg21;
mod ho01;
mod ho02;
mod ho03;
mod ho04;
mod ho05;
