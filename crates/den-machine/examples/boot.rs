//! Boots computers and prints how long each took: `boot AGENT DATA COUNT POOL LAYER…`.

use std::path::PathBuf;
use std::time::Instant;

use den_disk::{DiskConfig, Disks, Identity, StorageChoice};
use den_machine::{BootPlan, Machines, MachinesConfig};
use den_model::{Bytes, ComputerId, Cpus, Limits};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let agent: &'static [u8] = std::fs::read(&args[0]).unwrap().leak();
    let data = PathBuf::from(&args[1]);
    let count: usize = args[2].parse().unwrap();
    let pool: u32 = args[3].parse().unwrap();
    let layers: Vec<PathBuf> = args[4..].iter().map(PathBuf::from).collect();
    std::fs::create_dir_all(&data).unwrap();
    let disks =
        Disks::open(&DiskConfig { data: data.clone(), storage: StorageChoice::Auto, size: Some(Bytes::gib(8)) })
            .unwrap();
    let config =
        MachinesConfig { run: data.join("run-boot"), data: data.clone(), images: layers[0].clone(), pool, agent };
    let (machines, found) = Machines::connect(config).await.unwrap();
    println!("found {}", found.len());
    tokio::time::sleep(std::time::Duration::from_millis(500 + 10 * u64::from(pool))).await;
    println!("husks {}", machines.husks().await.unwrap());
    let limits = Limits { cpus: Cpus(2000), memory: Bytes::gib(1), disk: Bytes::gib(1), pids: 512 };
    let mut times = Vec::new();
    let mut all = Vec::new();
    for n in 0..count {
        let id = ComputerId::from_uuid(uuid::Uuid::now_v7());
        let begin = Instant::now();
        let disk = disks.create(id, limits.disk, &Identity { hostname: "test", machine_id: [n as u8; 16] }).unwrap();
        let made = begin.elapsed();
        let machine = machines
            .boot(&BootPlan {
                id,
                hostname: "test",
                layers: &layers,
                disk: &disk.live,
                limits,
                pool: 0,
                counter: None,
                shared: &[],
            })
            .await
            .unwrap();
        times.push((begin.elapsed(), made));
        all.push(machine);
    }
    times.sort();
    println!("boot min {:?} p50 {:?} max {:?}", times[0], times[count / 2], times[count - 1]);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    println!("usage {:?}", machines.usage(all[0].id()).await);
    println!(
        "out: {}",
        std::fs::read_to_string(disks.disk(all[0].id()).live.join("data/root/out")).unwrap_or_default()
    );
    if std::env::var("LEAVE").is_ok() {
        std::process::exit(0);
    }
    let begin = Instant::now();
    for machine in &all {
        machine.kill().await.unwrap();
    }
    println!("kill each {:?}", begin.elapsed() / count as u32);
    for machine in &all {
        machine.died().await;
        disks.remove(machine.id()).unwrap();
    }
    for machine in &found {
        machine.kill().await.unwrap();
        disks.remove(machine.id()).unwrap();
    }
    machines.exit().await.unwrap();
    drop(machines);
    disks.close().unwrap();
}
