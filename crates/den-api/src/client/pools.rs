//! Pools.

use http::Method;

use super::{Client, ClientError, Target, calls::NOTHING};
use crate::{ChangePool, CreatePool, PoolList, PoolView};

impl Client {
    /// All pools.
    pub async fn pools(&self) -> Result<PoolList, ClientError> {
        self.json(Method::GET, "/v1/pools", NOTHING).await
    }

    /// One pool.
    pub async fn pool(&self, name: &str) -> Result<PoolView, ClientError> {
        self.json(Method::GET, &Target::new("/v1/pools/", name, "").text, NOTHING).await
    }

    /// Makes a pool.
    pub async fn new_pool(&self, pool: &CreatePool) -> Result<PoolView, ClientError> {
        self.json(Method::POST, "/v1/pools", Some(pool)).await
    }

    /// Gives a pool other limits.
    pub async fn change_pool(&self, name: &str, change: &ChangePool) -> Result<PoolView, ClientError> {
        self.json(Method::PATCH, &Target::new("/v1/pools/", name, "").text, Some(change)).await
    }

    /// Removes a pool that nobody is in.
    pub async fn remove_pool(&self, name: &str) -> Result<(), ClientError> {
        self.nothing(Method::DELETE, &Target::new("/v1/pools/", name, "").text, NOTHING).await
    }
}
