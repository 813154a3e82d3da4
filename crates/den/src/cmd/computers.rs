//! `new`, `ls`, `info`, `rm`, `stop`, `start`.

use std::{collections::BTreeMap, time::Duration};

use clap::Args;
use den_api::{
    ClientError, ComputerView, CreateComputer, MemoryView, StopComputer, VolumeMountRequest, client::ComputerFilter,
    computer::Amount,
};
use den_model::{PoolName, Tier, parse_duration};

use super::{
    fork::parent_text,
    look::{self, ListArgs},
    net::NewNetArgs,
    trash,
};
use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

/// How often a create whose answer was lost is asked again.
const CREATE_ATTEMPTS_MAX: u32 = 3;

#[derive(Debug, Args)]
#[command(after_help = "Example: den new web --memory 2G --env DEBUG=1\nPrints the name alone.")]
pub struct NewArgs {
    /// A DNS label; one is made up without
    name: Option<String>,
    /// What it starts from [default: base]
    #[arg(long, short = 'I', value_name = "IMAGE")]
    image: Option<String>,
    /// With a kernel of its own
    #[arg(long)]
    vm: bool,
    /// CPUs at most: 2, 0.5
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    cpus: Option<String>,
    /// Memory at most: 512M, 2G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory: Option<String>,
    /// Disk at most, beyond the image: 20G
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    disk: Option<String>,
    /// Processes and threads at most
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Environment of every command
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    env: Vec<(String, String)>,
    /// To find it by
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Start the image's own command at every boot, as a step
    #[arg(long)]
    entrypoint: bool,
    /// Sleep by itself when nobody uses it for so long: 10m, 2h:stop
    #[arg(long, value_name = "DURATION")]
    idle: Option<String>,
    /// The pool that it takes room of [default: default]
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Mount a shared volume, to read and to write: data:/mnt/data
    #[arg(long, value_name = "VOLUME:PATH", value_parser = mount)]
    volume: Vec<VolumeMountRequest>,
    #[command(flatten)]
    net: NewNetArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den ls --label team=red  |  den ls web@12 /etc")]
pub struct LsArgs {
    #[command(flatten)]
    files: ListArgs,
    /// Only those in this state: running, stopped, failed
    #[arg(long)]
    state: Option<String>,
    /// Only those with this label
    #[arg(long, short, value_name = "K=V")]
    label: Vec<String>,
    /// Print names alone
    #[arg(long, short)]
    quiet: bool,
    /// Those that were removed and can come back
    #[arg(long, conflicts_with_all = ["target", "state", "label"])]
    trash: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den info web")]
pub struct NameArgs {
    /// Name or id
    name: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den start web db")]
pub struct NamesArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den rm web db  |  den rm --now web\n\
                        They lie in the trash for a day, or as den serve --trash-for says: den undo web.")]
pub struct RmArgs {
    /// Names or ids
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// All there are
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// No error where there is none; running ones are removed with and without it
    #[arg(long, short)]
    force: bool,
    /// For good, also out of the trash
    #[arg(long, alias = "purge")]
    now: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: den stop web --grace 30s")]
pub struct StopArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Between SIGTERM and SIGKILL [default: 5s]
    #[arg(long, short = 't', value_name = "DURATION", value_parser = parse_duration)]
    grace: Option<Duration>,
}

/// Reads `K=V`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("wanted KEY=VALUE".to_owned()),
    }
}

/// Reads `VOLUME:PATH`.
fn mount(text: &str) -> Result<VolumeMountRequest, String> {
    match text.split_once(':') {
        Some((volume, path)) if !volume.is_empty() && path.starts_with('/') => {
            Ok(VolumeMountRequest { volume: volume.to_owned(), path: path.to_owned() })
        }
        _ => Err("wanted VOLUME:PATH, and PATH begins with `/`".to_owned()),
    }
}

/// Makes a computer.
pub async fn new(global: &Global, args: NewArgs) -> Outcome {
    let create = CreateComputer {
        name: args.name,
        image: args.image,
        tier: args.vm.then(|| "vm".to_owned()),
        cpus: args.cpus.map(Amount),
        memory: args.memory.map(Amount),
        disk: args.disk.map(Amount),
        pids: args.pids,
        env: args.env.into_iter().collect::<BTreeMap<_, _>>(),
        labels: args.label.into_iter().collect(),
        entrypoint: args.entrypoint,
        net: args.net.request(),
        idle: args.idle,
        pool: args.pool,
        volumes: (!args.volume.is_empty()).then_some(args.volume),
    };
    let client = global.client()?;
    // With a key, asking again after a lost answer gives the computer that was made, not a second.
    let key = format!("cli-{}-{}", std::process::id(), show::now_micros());
    let mut attempt = 1;
    let computer = loop {
        match client.create(&create, Some(&key)).await {
            Err(ClientError::Broken { .. }) if attempt < CREATE_ATTEMPTS_MAX => attempt += 1,
            other => break other?,
        }
    };
    if global.json {
        show::json(&computer)?
    } else {
        show::line(&computer.name)?
    }
    Ok(0)
}

/// Lists computers, or files of one.
pub async fn ls(global: &Global, args: LsArgs) -> Outcome {
    if args.trash {
        return trash::list(global, args.quiet).await;
    }
    if let Some(target) = &args.files.target {
        return look::list(global, target, &args.files).await;
    }
    let filtered = args.state.is_some() || !args.label.is_empty();
    let filter = ComputerFilter { state: args.state, labels: args.label, ..ComputerFilter::default() };
    let computers = global.client()?.all_computers(&filter).await?;
    if global.json {
        show::json(&computers)?;
    } else if args.quiet {
        show::print(&computers.iter().map(|computer| format!("{}\n", computer.name)).collect::<String>())?;
    } else if computers.is_empty() {
        show::line(if filtered { "no such computers" } else { "no computers; make one with: den new" })?;
    } else {
        // Where all are in the default pool nobody need hear of pools.
        let pools = computers.iter().any(|c| c.pool != PoolName::DEFAULT);
        let heads = ["NAME", "STATE", "IMAGE", "CPUS", "MEMORY", "AGE", "STEPS"];
        let row = |c: &ComputerView| {
            [
                c.name.clone(),
                c.state.to_string(),
                c.image.clone(),
                c.cpus.to_string(),
                show::size(c.memory.0),
                show::age(c.created_at),
                c.last_step.to_string(),
            ]
        };
        if pools {
            let [name, state, image, cpus, memory, age, steps] = heads;
            show::table(
                [name, state, "POOL", image, cpus, memory, age, steps],
                computers.iter().map(|c| {
                    let [name, state, image, cpus, memory, age, steps] = row(c);
                    [name, state, c.pool.clone(), image, cpus, memory, age, steps]
                }),
            )?;
        } else {
            show::table(heads, computers.iter().map(row))?;
        }
    }
    Ok(0)
}

/// Shows one computer.
pub async fn info(global: &Global, args: NameArgs) -> Outcome {
    let computer = global.client()?.computer_and_memory(&args.name).await?;
    if global.json {
        show::json(&computer)?
    } else {
        show_computer(&computer)?
    }
    Ok(0)
}

fn show_computer(c: &ComputerView) -> Result<(), Trouble> {
    let pairs = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    };
    let state = match &c.reason {
        Some(reason) => format!("{}: {reason}", c.state),
        None => format!("{} for {}", c.state, show::age(c.changed_at)),
    };
    let beside = |used: Option<String>, most: String| match used {
        Some(used) => format!("{used} of {most}"),
        None => most,
    };
    let usage = c.usage.as_ref();
    show::facts(&[
        ("name", c.name.clone()),
        ("id", c.id.to_string()),
        ("state", state),
        ("image", format!("{} {}", c.image, c.image_digest.get(..19).unwrap_or(&c.image_digest))),
        (
            "parent",
            c.parent.as_ref().map(|p| format!("{} ({})", parent_text(&p.name, p.step), p.id)).unwrap_or_default(),
        ),
        ("tier", if c.tier == Tier::Vm { "vm" } else { "container" }.to_owned()),
        (
            "cpus",
            match usage {
                Some(usage) => format!("{}, {} used", c.cpus, show::took(usage.cpu_us as i64)),
                None => c.cpus.to_string(),
            },
        ),
        ("memory", beside(usage.map(|u| show::size(u.memory_bytes)), show::size(c.memory.0))),
        ("disk", beside(usage.and_then(|u| u.disk_bytes).map(show::size), show::size(c.disk.0))),
        ("processes", beside(usage.map(|u| u.pids.to_string()), c.pids.to_string())),
        ("oom kills", usage.filter(|u| u.oom_kills > 0).map(|u| u.oom_kills.to_string()).unwrap_or_default()),
        ("network", format!("{}, {}", c.net, c.address)),
        ("pool", if c.pool == PoolName::DEFAULT { String::new() } else { c.pool.clone() }),
        ("volumes", c.volumes.iter().map(|v| format!("{} at {}", v.name, v.path)).collect::<Vec<_>>().join(", ")),
        ("env", pairs(&c.env)),
        ("labels", pairs(&c.labels)),
        ("entrypoint", if c.entrypoint { "started at boot".to_owned() } else { String::new() }),
        (
            "idle",
            c.idle
                .as_ref()
                .map(|idle| if c.asleep { format!("{idle}, asleep") } else { idle.clone() })
                .unwrap_or_default(),
        ),
        ("created", format!("{} ago", show::age(c.created_at))),
        ("steps", c.last_step.to_string()),
        ("can", c.capabilities.join(" ")),
        ("to disk", c.memory_state.as_ref().map(to_disk).unwrap_or_default()),
    ])
}

/// Whether its memory can be written to the disk, or is there.
fn to_disk(memory: &MemoryView) -> String {
    match (memory.on_disk, &memory.reason) {
        (true, None) => "its memory is there, nothing of it runs".to_owned(),
        (true, Some(reason)) => format!("its memory is there, and cannot be read back: {reason}"),
        (false, None) => "den pause --to-disk, den fork --memory".to_owned(),
        (false, Some(reason)) => format!("no: {reason}"),
    }
}

/// Goes through names, goes on after a refusal, and says at the end that there was one.
pub async fn each(names: &[String], act: impl AsyncFn(String) -> Result<(), Trouble>) -> Outcome {
    let mut refused = None;
    for name in names {
        if let Err(trouble) = act(name.clone()).await
            && let Some(earlier) = refused.replace(trouble)
        {
            earlier.report();
        }
    }
    refused.map_or(Ok(0), Err)
}

/// Removes computers.
pub async fn rm(global: &Global, args: RmArgs) -> Outcome {
    let client = global.client()?;
    let names = if args.all {
        let all = client.all_computers(&ComputerFilter::default()).await?;
        all.into_iter().map(|computer| computer.id.to_string()).collect()
    } else {
        args.names
    };
    let forgiven = |error: &ClientError| {
        (args.force || args.all) && matches!(error.code(), Some("computer_not_found" | "computer_trashed"))
    };
    let remove = async |name: &str| if args.now { client.remove_now(name).await } else { client.remove(name).await };
    each(&names, async |name| match remove(&name).await {
        Err(error) if !forgiven(&error) => Err(error.into()),
        _ if global.json => show::json_line(&serde_json::json!({ "removed": name })),
        _ => Ok(()),
    })
    .await
}

/// Ends all processes of computers.
pub async fn stop(global: &Global, args: StopArgs) -> Outcome {
    let client = global.client()?;
    let stop = StopComputer { grace_ms: args.grace.map(|grace| grace.as_millis() as u64) };
    each(&args.names, async |name| {
        let computer = client.stop(&name, &stop).await?;
        if global.json { show::json_line(&computer) } else { Ok(()) }
    })
    .await
}

/// Boots stopped computers.
pub async fn start(global: &Global, args: NamesArgs) -> Outcome {
    let client = global.client()?;
    each(&args.names, async |name| {
        let computer = client.start(&name).await?;
        if global.json { show::json_line(&computer) } else { Ok(()) }
    })
    .await
}
