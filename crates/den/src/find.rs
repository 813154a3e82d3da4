//! Where the daemon is, as the command line and the environment say.

use std::path::PathBuf;

use den_api::{Client, ClientError};

/// Flags that every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// The daemon's address [default: as client.json in the data folder says]
    #[arg(long, env = "DEN_URL", hide_env = true, value_name = "URL", global = true, display_order = 900)]
    pub url: Option<String>,
    /// The data folder [default: /var/lib/den]
    #[arg(long, env = "DEN_DATA", hide_env = true, value_name = "DIR", global = true, display_order = 901)]
    pub data: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true, display_order = 902)]
    pub json: bool,
}

impl Global {
    /// The client for the daemon that is meant. The token comes from `DEN_TOKEN`, never from a flag:
    /// flags can be read by everyone on the host.
    pub fn client(&self) -> Result<Client, ClientError> {
        let token = std::env::var("DEN_TOKEN").ok().filter(|token| !token.is_empty());
        Client::find(self.url.as_deref().filter(|url| !url.is_empty()), token.as_deref(), self.data.as_deref())
    }
}
