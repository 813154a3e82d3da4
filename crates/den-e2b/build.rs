//! Makes a descriptor set of `proto/`, without a `protoc` on the machine.

use std::{env, error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(["process.proto", "filesystem.proto"])?;
    let place = Path::new(&env::var("OUT_DIR")?).join("envd.binpb");
    Ok(fs::write(place, compiler.encode_file_descriptor_set())?)
}
