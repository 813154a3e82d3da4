//! Measures what a write costs its caller: `cargo run --release -p den-store --example store_latency [DIR]`.
//!
//! DIR should be on the disk that DATA is on; without it a temporary directory is taken.
#![allow(missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{future::Future, path::PathBuf, time::Instant};

use common::{computer, id, step};
use den_model::StepEnd;
use den_store::{
    Durability::{self, Power, Process},
    Order, Store, StoreError,
};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), StoreError> {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).expect("a directory to write to");
    let store = Store::open(dir.path())?;
    store.insert_computer(&computer(1, "web"), None, Power).await?;
    let mut number = 0;
    let mut next = || {
        number += 1;
        number
    };

    let insert = |number, durability: Durability| store.insert_step(id(1), &step(number), durability);
    measure("insert_step, Process", 5000, || insert(next(), Process)).await?;
    let mut ended = 0;
    measure("end_step, Process", 5000, || {
        ended += 1;
        store.end_step(id(1), ended, 1, &StepEnd::Exited { code: 0 }, 10, Process)
    })
    .await?;
    measure("insert_step, Power", 300, || insert(next(), Power)).await?;
    let mut made = 1;
    measure("insert_computer, Power", 300, || {
        made += 1;
        store.insert_computer(&computer(made, &format!("c{made}")), None, Power)
    })
    .await?;
    measure("get_computer", 5000, || store.get_computer(id(1))).await?;
    measure("steps, newest 20", 2000, || store.steps(id(1), None, 20, Order::NewestFirst)).await?;

    let begun = Instant::now();
    let writes: Vec<_> = (0..100).map(|_| insert(next(), Power)).collect();
    for write in writes {
        write.await?;
    }
    println!("{:<34} {:>8} µs for all", "100 insert_step at once, Power", begun.elapsed().as_micros());

    let begun = Instant::now();
    let writes: Vec<_> = (0..20_000).map(|_| insert(next(), Process)).collect();
    for write in writes {
        write.await?;
    }
    println!(
        "{:<34} {:>8.1} µs each",
        "20000 insert_step at once, Process",
        begun.elapsed().as_micros() as f64 / 20_000.0
    );

    // The exec path while creates wait for the disk.
    let creates = store.clone();
    let load = tokio::spawn(async move {
        for number in 10_000..10_200 {
            creates.insert_computer(&computer(number, &format!("d{number}")), None, Power).await?;
        }
        Ok::<_, StoreError>(())
    });
    measure("insert_step, Process, beside Power", 2000, || insert(next(), Process)).await?;
    load.await.expect("no panic")?;

    let begun = Instant::now();
    store.delete_computer(id(1), Process).await?;
    println!("{:<34} {:>8} µs with {number} steps", "delete_computer, Process", begun.elapsed().as_micros());
    Ok(())
}

async fn measure<T, F: Future<Output = Result<T, StoreError>>>(
    what: &str,
    times: usize,
    mut act: impl FnMut() -> F,
) -> Result<(), StoreError> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let begun = Instant::now();
        act().await?;
        took.push(begun.elapsed());
    }
    took.sort();
    let at = |share: f64| took[((times - 1) as f64 * share) as usize].as_nanos() as f64 / 1000.0;
    println!("{what:<34} min {:>7.1}  p50 {:>7.1}  p99 {:>7.1}  max {:>8.1} µs", at(0.0), at(0.5), at(0.99), at(1.0));
    Ok(())
}
