//! `e2b`: what E2B's SDKs are told, so that they come here, and the templates that they expect.

mod desktop;
mod interpreter;
mod template;

use std::path::Path;

use clap::{Args, Subcommand};
use den_api::{Client, client::DATA_DEFAULT};

use crate::{
    find::Global,
    report::{Outcome, Trouble},
    show,
};

#[derive(Debug, Subcommand)]
pub enum E2bCommand {
    /// The variables that lead E2B's SDKs to this daemon
    Env(EnvArgs),
    /// The key that they show; drawn when first asked for
    #[command(after_help = "Example: export E2B_API_KEY=$(sudo den e2b key)")]
    Key,
    /// Build a template that SDKs expect: the code interpreter's, or the desktop's
    Template(template::TemplateArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: eval \"$(den e2b env)\"; python -c 'from e2b import Sandbox; print(Sandbox.create())'\n\
                        With --domain a proxy with TLS of yours passes api.DOMAIN and *.DOMAIN on to this daemon."
)]
pub struct EnvArgs {
    /// Names in place of addresses: api.DOMAIN and PORT-ID.DOMAIN lead here
    #[arg(long, value_name = "DOMAIN[:PORT]")]
    domain: Option<String>,
}

/// Prints the key, or the variables, or has a template built.
pub async fn run(global: &Global, command: &E2bCommand) -> Outcome {
    let data = global.data.as_deref().unwrap_or(Path::new(DATA_DEFAULT));
    let key = den_e2b::key_of(data).map_err(|error| {
        Trouble::io(data.join("e2b.key").display(), &error)
            .hint("the key is its owner's alone: run this as the user that `den serve` runs as")
    })?;
    let text = match command {
        E2bCommand::Template(args) => return template::run(global, &global.client()?, &key, args).await,
        E2bCommand::Key if global.json => format!("{}\n", serde_json::json!({ "key": key })),
        E2bCommand::Key => format!("{key}\n"),
        E2bCommand::Env(EnvArgs { domain }) => {
            let variables = match domain {
                Some(domain) => vec![("E2B_API_KEY", key), ("E2B_DOMAIN", domain.clone())],
                None => {
                    let url = url(global, data)?;
                    vec![("E2B_API_KEY", key), ("E2B_API_URL", url.clone()), ("E2B_SANDBOX_URL", url)]
                }
            };
            match global.json {
                true => {
                    let variables: serde_json::Map<_, _> =
                        variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
                    format!("{}\n", serde_json::Value::Object(variables))
                }
                false => variables.iter().map(|(name, value)| format!("export {name}={value}\n")).collect(),
            }
        }
    };
    show::print(&text)?;
    Ok(0)
}

/// Where the daemon listens.
fn url(global: &Global, data: &Path) -> Result<String, Trouble> {
    if let Some(url) = global.url.as_deref().filter(|url| !url.is_empty()) {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    Ok(Client::find_file(Some(data))?.url)
}
