//! `e2b`: what E2B's SDKs are told, so that they come here, and the templates that they expect.

mod desktop;
mod interpreter;
pub mod names;
mod template;

use std::path::Path;

use clap::{Args, Subcommand};
use den_api::{Client, client::DATA_DEFAULT};

use self::names::NamesFile;
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
                        Without a flag requests go to the address that the daemon listens on: two URLs.\n\
                        With --tls they go by names, as E2B's do, and so do PORT-ID.DOMAIN for servers inside.\n\
                        With --domain a proxy with TLS of yours passes api.DOMAIN and *.DOMAIN on to this daemon."
)]
pub struct EnvArgs {
    /// Names of the domain that `den serve --e2b-domain` has, with its certificates; comments say how to resolve them
    #[arg(long, conflicts_with = "domain")]
    tls: bool,
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
        E2bCommand::Env(EnvArgs { tls, domain }) => {
            let mut variables = vec![("E2B_API_KEY", key)];
            let mut advice = String::new();
            match domain {
                Some(domain) => variables.push(("E2B_DOMAIN", domain.clone())),
                None if *tls => {
                    let names = NamesFile::find(data)?;
                    variables.extend(names.variables());
                    // They outrank names, and may be there of an earlier `den e2b env`.
                    advice = format!("unset E2B_API_URL E2B_SANDBOX_URL E2B_VOLUME_API_URL\n{}", names.advice());
                }
                None => {
                    let url = url(global, data)?;
                    let names = ["E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"];
                    variables.extend(names.map(|name| (name, url.clone())));
                }
            }
            match global.json {
                true => {
                    let variables: serde_json::Map<_, _> =
                        variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
                    format!("{}\n", serde_json::Value::Object(variables))
                }
                false => {
                    let exports = variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value)));
                    exports.chain([advice]).collect()
                }
            }
        }
    };
    show::print(&text)?;
    Ok(0)
}

/// A word of a shell.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,@%+=".contains(&byte);
    match !text.is_empty() && text.bytes().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Where the daemon listens.
fn url(global: &Global, data: &Path) -> Result<String, Trouble> {
    if let Some(url) = global.url.as_deref().filter(|url| !url.is_empty()) {
        return Ok(url.trim_end_matches('/').to_owned());
    }
    Ok(Client::find_file(Some(data))?.url)
}
