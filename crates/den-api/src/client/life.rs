//! Sleeping, and being cut off.

use http::Method;

use super::{Client, ClientError, calls::NOTHING};
use crate::{ChangeComputer, ComputerView, PauseComputer, UnpluggedList};

impl Client {
    /// Changes what may be changed of a computer.
    pub async fn change_computer(&self, name: &str, change: &ChangeComputer) -> Result<ComputerView, ClientError> {
        self.json(Method::PATCH, &Self::computer_target(name, "").text, Some(change)).await
    }

    /// Has all processes of a computer stand still.
    pub async fn pause(&self, name: &str, pause: &PauseComputer) -> Result<ComputerView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/pause").text, Some(pause)).await
    }

    /// Lets a paused computer go on.
    pub async fn resume(&self, name: &str) -> Result<ComputerView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/resume").text, NOTHING).await
    }

    /// Cuts a computer off.
    pub async fn unplug(&self, name: &str) -> Result<ComputerView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/unplug").text, NOTHING).await
    }

    /// Cuts all computers off.
    pub async fn unplug_all(&self) -> Result<UnpluggedList, ClientError> {
        self.json(Method::POST, "/v1/unplug", NOTHING).await
    }

    /// Takes a computer back that was cut off.
    pub async fn replug(&self, name: &str) -> Result<ComputerView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/replug").text, NOTHING).await
    }
}
