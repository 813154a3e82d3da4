//! Shared volumes.

use http::Method;

use super::{Client, ClientError, Target, calls::NOTHING};
use crate::{CreateVolume, VolumeList, VolumeView};

impl Client {
    /// All shared volumes, the oldest first.
    pub async fn volumes(&self) -> Result<VolumeList, ClientError> {
        self.json(Method::GET, "/v1/volumes", NOTHING).await
    }

    /// One shared volume, by its name or id.
    pub async fn volume(&self, volume: &str) -> Result<VolumeView, ClientError> {
        self.json(Method::GET, &Target::new("/v1/volumes/", volume, "").text, NOTHING).await
    }

    /// Makes a shared volume.
    pub async fn make_volume(&self, volume: &CreateVolume) -> Result<VolumeView, ClientError> {
        self.json(Method::POST, "/v1/volumes", Some(volume)).await
    }

    /// Removes a shared volume that nobody mounts, with all that is in it.
    pub async fn remove_volume(&self, volume: &str) -> Result<(), ClientError> {
        self.nothing(Method::DELETE, &Target::new("/v1/volumes/", volume, "").text, NOTHING).await
    }
}
