//! Measures create, exec and remove below HTTP, in a house of its own.
//!
//! `cargo run -p den-control --example control_latency -- AGENT IMAGES DIR`: the static agent, an image
//! store with `base` in it, a new folder. Leaves nothing behind.
#![allow(missing_docs)]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use den_api::{CreateComputer, ExecRequest};
use den_control::{Config, Control, Follow, ListComputers, Order, OutputItem, OutputReader, StorageChoice, Who};

async fn all(mut output: OutputReader) -> (Vec<u8>, Option<i32>) {
    let (mut bytes, mut code) = (Vec::new(), None);
    while let Some(item) = output.next().await.expect("output") {
        match item {
            OutputItem::Data { bytes: more, .. } => bytes.extend_from_slice(&more),
            OutputItem::Cut { offset, bytes } => println!("cut of {bytes} at {offset}"),
            OutputItem::End(step) => code = step.end.map(|end| end.exit_code),
        }
    }
    (bytes, code)
}

fn shown(name: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("{name:<28} min {:?}  p50 {:?}  max {:?}", times[0], times[times.len() / 2], times[times.len() - 1]);
}

fn exec(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|&word| word.to_owned()).collect(), ..ExecRequest::default() }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [agent, images, dir] = arguments.as_slice() else { panic!("AGENT IMAGES DIR") };
    let agent: &'static [u8] = Box::leak(std::fs::read(agent).expect("the agent").into_boxed_slice());
    let config = || Config {
        net: den_control::HouseNet::default(),
        data: dir.join("data"),
        run: dir.join("run"),
        images: images.clone(),
        pool: 8,
        storage: StorageChoice::Auto,
        sync_steps: false,
        criu: None,
        keep_states: den_control::limits::STATES_NEWEST,
        disk_size: Some(den_model::Bytes::gib(2)),
        defaults: Config::default_limits(),
        agent,
        trash_for: Duration::ZERO,
    };
    let who = Who("example".to_owned());
    let begun = Instant::now();
    let control = Control::open(config()).await.expect("open");
    println!("opened in {:?}: {:?}", begun.elapsed(), control.version().await);
    tokio::time::sleep(Duration::from_millis(500)).await;

    let mut creates = Vec::new();
    let mut names = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        let view = control.create(CreateComputer::default(), None, &who).await.expect("create");
        creates.push(begun.elapsed());
        names.push(view.name);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    shown("create", creates);
    let name = names[0].clone();
    let mut execs = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        let execution = control.exec(&name, exec(&["true"]), &who).await.expect("exec");
        assert_eq!(all(execution.output).await, (vec![], Some(0)));
        execs.push(begun.elapsed());
    }
    shown("exec of true", execs);

    let begun = Instant::now();
    let execution = control.exec(&name, exec(&["head", "-c", "512M", "/dev/zero"]), &who).await.expect("exec");
    let (bytes, code) = all(execution.output).await;
    println!(
        "output of {} bytes: {:.0} MB/s, {code:?}",
        bytes.len(),
        bytes.len() as f64 / begun.elapsed().as_secs_f64() / 1e6
    );

    for script in ["head -c 512M /dev/zero > /tmp/big; rm /tmp/big", "head -c 512M /dev/zero | cat > /dev/null"] {
        let begun = Instant::now();
        all(control.exec(&name, exec(&["sh", "-c", script]), &who).await.expect("exec").output).await;
        println!("{script}: {:?}", begun.elapsed());
    }
    // The log alone, then the reading alone.
    let begun = Instant::now();
    let step = control.exec(&name, exec(&["head", "-c", "512M", "/dev/zero"]), &who).await.expect("exec").step.number;
    while control.step(&name, step).await.expect("step").end.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("the log alone: {:?}", begun.elapsed());
    let begun = Instant::now();
    all(control.output(&name, step, 0, Follow::ToTheEnd, None).await.expect("output")).await;
    println!("the reading alone: {:?}", begun.elapsed());

    for (argv, expected) in [
        (&["sh", "-c", "echo out; echo err >&2; exit 3"][..], 3),
        (&["nothing-of-that-name"], 127),
        (&["sh", "-c", "kill -9 $$"], 137),
    ] {
        let (bytes, code) = all(control.exec(&name, exec(argv), &who).await.expect("exec").output).await;
        println!("{argv:?}: {:?} {code:?}", String::from_utf8_lossy(&bytes));
        assert_eq!(code, Some(expected));
    }
    let request = ExecRequest { stdin: Some("aGVsbG8=".to_owned()), ..exec(&["cat"]) };
    assert_eq!(all(control.exec(&name, request, &who).await.expect("cat").output).await, (b"hello".to_vec(), Some(0)));
    for (request, code) in [
        (ExecRequest { user: Some("nobody-such".to_owned()), ..exec(&["true"]) }, "no_such_user"),
        (ExecRequest { cwd: Some("/nowhere".to_owned()), ..exec(&["true"]) }, "no_such_cwd"),
        (ExecRequest::default(), "bad_request"),
    ] {
        let refused = control.exec(&name, request, &who).await.err().map(|error| error.code);
        assert_eq!(refused, Some(code));
    }
    let mut writer = control
        .write_file(&name, den_control::WriteFile { path: b"/tmp/x".to_vec(), ..Default::default() }, &who)
        .await
        .expect("write");
    writer.send(b"abc").await.expect("send");
    println!("written: {:?}", writer.finish().await.expect("finish"));
    println!("usage: {:?}", control.get(&name, false).await.expect("get").usage);

    // A long step, a second house in place of the first one, and the step goes on.
    let long = control
        .exec(&name, exec(&["sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.5; done"]), &who)
        .await
        .expect("exec");
    let number = long.step.number;
    drop(long);
    control.stop(&names[1], Some(Duration::from_millis(500)), &who).await.expect("stop");
    control.start(&names[1], &who).await.expect("start");
    control.stop(&names[2], None, &who).await.expect("stop");
    let refused = control.exec(&names[2], exec(&["true"]), &who).await.err().expect("stopped");
    println!("{} / {:?}", refused.message, refused.hint);
    println!("steps: {:?}", control.steps(&name, None, Some(3), Order::NewestFirst).await.expect("steps").items);

    let mut removes = Vec::new();
    for name in &names[3..] {
        let begun = Instant::now();
        control.remove(name, den_control::Removal::ForGood, &who).await.expect("remove");
        removes.push(begun.elapsed());
    }
    shown("remove", removes);
    let (bytes, code) = all(control.output(&name, number, 0, Follow::ToTheEnd, None).await.expect("output")).await;
    println!("the long step: {:?} {code:?}", String::from_utf8_lossy(&bytes));
    println!("left: {}", control.list(ListComputers::default()).await.expect("list").items.len());
    let begun = Instant::now();
    control.shutdown(Some(Duration::from_millis(500))).await.expect("shutdown");
    println!("shut down in {:?}", begun.elapsed());
}
