//! The trash, and what can be taken back.

use http::Method;

use super::{Client, ClientError, Target, calls::NOTHING};
use crate::{EmptiedList, TrashList, UndoList, UndoRequest, Undone};

impl Client {
    /// Removes a computer for good, also out of the trash.
    pub async fn remove_now(&self, name: &str) -> Result<(), ClientError> {
        let target = Self::computer_target(name, "").ask("now", "true");
        self.nothing(Method::DELETE, &target.text, NOTHING).await
    }

    /// What lies in the trash.
    pub async fn trash(&self) -> Result<TrashList, ClientError> {
        self.json(Method::GET, "/v1/trash", NOTHING).await
    }

    /// Removes for good what lies in the trash: one computer, or all.
    pub async fn empty_trash(&self, name: Option<&str>) -> Result<EmptiedList, ClientError> {
        let target = match name {
            Some(name) => Target::new("/v1/trash/", name, "").text,
            None => "/v1/trash".to_owned(),
        };
        self.json(Method::DELETE, &target, NOTHING).await
    }

    /// Takes back what was done last.
    pub async fn undo(&self, undo: &UndoRequest) -> Result<Undone, ClientError> {
        self.json(Method::POST, "/v1/undo", Some(undo)).await
    }

    /// What was done, the newest first: 1000 at most, 100 without a limit.
    pub async fn undo_list(&self, name: Option<&str>, limit: Option<u32>) -> Result<UndoList, ClientError> {
        let target = Target::plain("/v1/undo").ask_some("computer", name).ask_some("limit", limit);
        self.json(Method::GET, &target.text, NOTHING).await
    }
}
