//! Builds the default image `base` into the store whose folder is given; with more arguments a plain
//! image named `plain` of that release, with those packages.
//!
//! ```text
//! cargo run -p den-image --example build-base -- FOLDER [debian:bookworm [PACKAGE…]]
//! ```

use den_image::{BuildSpec, ImageStore, ProgressEvent, Recipe};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().ok_or("which folder? for example /var/cache/den/images")?;
    let mut spec = BuildSpec::base();
    if let Some(from) = arguments.next() {
        let packages = arguments.collect();
        spec = BuildSpec { name: "plain".parse()?, from, packages, recipe: Recipe::Plain, ..spec };
    }
    let store = ImageStore::open(root.as_ref())?;
    let image = store.build(&spec, &|event: ProgressEvent| match event {
        ProgressEvent::Line { text } | ProgressEvent::Stage { text } => eprintln!("{text}"),
        ProgressEvent::Layer { .. } => {}
    })?;
    println!("{} {} {}", image.name, image.digest, image.size);
    Ok(())
}
