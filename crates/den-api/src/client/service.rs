//! Services of a computer.

use std::time::Duration;

use http::Method;

use super::{Client, ClientError, Target, calls::NOTHING};
use crate::service::{AddService, ServiceList, ServiceView};

impl Client {
    /// Gives a computer a service; it is started at once where the computer runs.
    pub async fn add_service(&self, name: &str, add: &AddService) -> Result<ServiceView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/services").text, Some(add)).await
    }

    /// The services of a computer, by name.
    pub async fn services(&self, name: &str) -> Result<Vec<ServiceView>, ClientError> {
        let target = Self::computer_target(name, "/services");
        self.json::<ServiceList>(Method::GET, &target.text, NOTHING).await.map(|list| list.items)
    }

    /// One service as it is now.
    pub async fn service(&self, name: &str, service: &str) -> Result<ServiceView, ClientError> {
        self.json(Method::GET, &service_target(name, service, "").text, NOTHING).await
    }

    /// One service once it is another than at the revision `seen`, or after `wait`.
    pub async fn service_changed(
        &self,
        name: &str,
        service: &str,
        seen: u64,
        wait: Duration,
    ) -> Result<ServiceView, ClientError> {
        let target = service_target(name, service, "")
            .ask("seen", seen.to_string())
            .ask("wait_ms", wait.as_millis().to_string());
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// Has a service run while its computer runs.
    pub async fn start_service(&self, name: &str, service: &str) -> Result<ServiceView, ClientError> {
        self.json(Method::POST, &service_target(name, service, "/start").text, NOTHING).await
    }

    /// Ends a service until it is started again; returns once it has ended.
    pub async fn stop_service(&self, name: &str, service: &str) -> Result<ServiceView, ClientError> {
        self.json(Method::POST, &service_target(name, service, "/stop").text, NOTHING).await
    }

    /// Ends a service and starts it.
    pub async fn restart_service(&self, name: &str, service: &str) -> Result<ServiceView, ClientError> {
        self.json(Method::POST, &service_target(name, service, "/restart").text, NOTHING).await
    }

    /// Ends and forgets a service. Its steps stay.
    pub async fn remove_service(&self, name: &str, service: &str) -> Result<(), ClientError> {
        self.nothing(Method::DELETE, &service_target(name, service, "").text, NOTHING).await
    }
}

fn service_target(name: &str, service: &str, rest: &str) -> Target {
    Target::new(&Client::computer_target(name, "/services/").text, service, rest)
}
