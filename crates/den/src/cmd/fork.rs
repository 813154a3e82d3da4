//! `fork`, and the lineage of computers.

use std::collections::BTreeMap;

use clap::Args;
use den_api::{ComputerView, ForkRequest, client::ComputerFilter};
use den_model::ComputerId;
use serde_json::{Value, json};

use super::{computers::pair, state::StateArg};
use crate::{find::Global, report::Outcome, report::Trouble, show};

#[derive(Debug, Args)]
#[command(after_help = "Example: den fork web try  |  den fork web@12 try --count 4\nPrints the names alone.")]
pub struct ForkArgs {
    /// From which computer, or which state of it
    #[arg(value_name = "NAME[@STATE]")]
    from: String,
    /// The new one's name; with --count followed by -1, -2, …; one is made up without
    #[arg(value_name = "NEW")]
    new: Option<String>,
    /// How many, all or none
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    count: Option<u32>,
    /// Environment over the parent's
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    env: Vec<(String, String)>,
    /// Labels over the parent's
    #[arg(long, short, value_name = "K=V", value_parser = pair)]
    label: Vec<(String, String)>,
    /// The pool that they take room of; the parent's without
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// With the processes that run, where the host can
    #[arg(long)]
    memory: bool,
}

/// Makes computers from a state of another.
pub async fn fork(global: &Global, args: ForkArgs) -> Outcome {
    let from = StateArg::parse(&args.from)?;
    let request = ForkRequest {
        state: from.state,
        name: args.new,
        count: args.count,
        labels: args.label.into_iter().collect(),
        env: args.env.into_iter().collect(),
        pool: args.pool,
        memory: args.memory,
    };
    let forks = global.client()?.fork(&from.name, &request).await?;
    if global.json {
        show::json(&forks)?;
    } else {
        show::print(&forks.items.iter().map(|fork| format!("{}\n", fork.name)).collect::<String>())?;
    }
    Ok(0)
}

/// A computer, or a name that one had, with what was forked from it.
struct Node<'a> {
    name: &'a str,
    id: ComputerId,
    /// None: it is gone.
    computer: Option<&'a ComputerView>,
    forks: Vec<ComputerId>,
}

/// Shows who was forked from whom; only the family of `name` where one is given.
pub async fn lineage(global: &Global, name: Option<&str>) -> Outcome {
    let client = global.client()?;
    let computers = client.all_computers(&ComputerFilter::default()).await?;
    let only = match name {
        Some(name) => Some(client.computer(name).await?.id),
        None => None,
    };
    let (nodes, roots) = family(&computers);
    let roots: Vec<ComputerId> = match only {
        Some(id) => vec![eldest(&nodes, id)],
        None => roots,
    };
    if global.json {
        show::json(&roots.iter().map(|root| tree(&nodes, *root, 0)).collect::<Vec<_>>())?;
    } else if roots.is_empty() {
        show::line("no computers; make one with: den new")?;
    } else {
        let mut out = String::new();
        roots.iter().for_each(|root| draw(&nodes, *root, 0, &mut out));
        show::print(&out)?;
    }
    Ok(0)
}

/// Deeper ones are not drawn: a loop cannot be, and a chain this long tells nobody anything.
const DEPTH_MAX: usize = 1000;

fn family(computers: &[ComputerView]) -> (BTreeMap<ComputerId, Node<'_>>, Vec<ComputerId>) {
    let mut nodes: BTreeMap<ComputerId, Node<'_>> = computers
        .iter()
        .map(|c| (c.id, Node { name: &c.name, id: c.id, computer: Some(c), forks: Vec::new() }))
        .collect();
    let mut roots = Vec::new();
    for computer in computers {
        let Some(parent) = &computer.parent else {
            roots.push(computer.id);
            continue;
        };
        nodes
            .entry(parent.id)
            .or_insert_with(|| {
                roots.push(parent.id);
                Node { name: &parent.name, id: parent.id, computer: None, forks: Vec::new() }
            })
            .forks
            .push(computer.id);
    }
    (nodes, roots)
}

/// The first of the line that `id` comes from.
fn eldest(nodes: &BTreeMap<ComputerId, Node<'_>>, mut id: ComputerId) -> ComputerId {
    for _ in 0..DEPTH_MAX {
        match nodes.get(&id).and_then(|node| node.computer).and_then(|computer| computer.parent.as_ref()) {
            Some(parent) if nodes.contains_key(&parent.id) => id = parent.id,
            _ => break,
        }
    }
    id
}

fn tree(nodes: &BTreeMap<ComputerId, Node<'_>>, id: ComputerId, depth: usize) -> Value {
    let Some(node) = nodes.get(&id).filter(|_| depth < DEPTH_MAX) else { return Value::Null };
    let forks: Vec<Value> = node.forks.iter().map(|fork| tree(nodes, *fork, depth + 1)).collect();
    json!({
        "id": node.id,
        "name": node.name,
        "state": node.computer.map(|computer| computer.state),
        "parent": node.computer.and_then(|computer| computer.parent.as_ref()),
        "forks": forks,
    })
}

fn draw(nodes: &BTreeMap<ComputerId, Node<'_>>, id: ComputerId, depth: usize, out: &mut String) {
    let Some(node) = nodes.get(&id).filter(|_| depth < DEPTH_MAX) else { return };
    let state = node.computer.map_or_else(|| "gone".to_owned(), |computer| computer.state.to_string());
    let from = match node.computer.and_then(|computer| computer.parent.as_ref()) {
        Some(parent) => format!("  from {}", parent_text(&parent.name, parent.step)),
        None => String::new(),
    };
    out.push_str(&format!("{:indent$}{}  {state}{from}\n", "", node.name, indent = depth * 2));
    node.forks.iter().for_each(|fork| draw(nodes, *fork, depth + 1, out));
}

/// `web@12`: the parent's name and the step after which it was forked.
pub fn parent_text(name: &str, step: u64) -> String {
    format!("{name}@{step}")
}

/// The parent of a fork, by id; an error where it is none.
pub fn parent_of(fork: &ComputerView) -> Result<String, Trouble> {
    match &fork.parent {
        Some(parent) => Ok(parent.id.to_string()),
        None => Err(Trouble::new(format_args!("`{}` is no fork: it was made from an image", fork.name))
            .hint("name the target with --into NAME")),
    }
}
