//! Backups: one is begun, and its answer tells how far it is.
//!
//! The answer is NDJSON, one BackupEvent per line as it happens; the last one is `done` or `failed`. A client
//! that goes away does not end the backup.

use axum::{Extension, extract::State, response::Response};
use den_api::{BackUp, BackupEvent};
use futures_util::stream;

use super::{App, lines::lines, who};
use crate::{error::ApiError, extract::Body, guard::RequestId};

/// Makes a backup of the whole house: database, images, disks, states, output, records, keys.
#[utoipa::path(
    post,
    path = "/v1/backups",
    tag = "service",
    request_body = BackUp,
    responses((status = 200, description = "A line per BackupEvent", content_type = "application/x-ndjson", body = BackupEvent))
)]
pub(crate) async fn back_up(
    State(app): State<App>,
    Extension(RequestId(request)): Extension<RequestId>,
    Body(backup): Body<BackUp>,
) -> Result<Response, ApiError> {
    let job = app.control.back_up(backup, &who()).await?;
    Ok(lines(stream::unfold((job, request), |(mut job, request)| async move {
        let mut event = job.recv().await?;
        if let BackupEvent::Failed { error } = &mut event {
            error.request_id.get_or_insert_with(|| request.clone());
        }
        Some((event, (job, request)))
    })))
}
