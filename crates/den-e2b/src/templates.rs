//! Templates: the images of the house, what was built of them, and the snapshots of sandboxes.
//!
//! A snapshot is a computer that was forked from its sandbox and stopped: it holds the files, needs no process, and
//! outlives the sandbox. Sandboxes that begin from it are forks of it. It is noted before it is made, and before a newer
//! one takes its name: a crash leaves no disk that no name stands for.

use std::{collections::BTreeMap, sync::Arc};

use den_api::ImageView;
use den_control::Removal;
use den_sys::failpoint;
use serde::{Deserialize, Serialize};

use crate::{
    E2b,
    book::{Phase, Sandbox},
    build::{Context, Start},
    error::ApiError,
    life::CHANGE_WAIT,
    making::to_the_end,
    secret,
    time::now,
    who,
};

/// The kind of the facts that are snapshots.
const SNAPSHOT: &str = "e2b.snapshot";

/// The template of creates that name none, and the image of the same name.
pub(crate) const DEFAULT: &str = "base";

/// The tag of names that have none.
const TAG_DEFAULT: &str = "default";

/// What a sandbox begins as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub id: String,
    pub alias: Option<String>,
    pub image: String,
    /// The computer that is forked, where it is not an image alone.
    pub holder: Option<String>,
    /// Who commands run as, where, and with what, of one that says so.
    pub context: Option<Context>,
    /// What runs in every sandbox from its beginning.
    pub start: Option<Start>,
}

/// What is kept of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub template: String,
    pub holder: String,
    pub image: String,
    pub sandbox: String,
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default)]
    pub context: Option<Context>,
    pub created_at: i64,
}

/// The id that an image has as a template.
pub(crate) fn id_of(image: &str) -> String {
    format!("t{}", &blake3::hash(image.as_bytes()).to_hex()[..19])
}

impl Template {
    pub(crate) fn of_image(image: &str) -> Self {
        let (id, alias) = (id_of(image), Some(image.to_owned()));
        Self { id, alias, image: image.to_owned(), holder: None, context: None, start: None }
    }

    /// Who commands run as where they do not say, where, and with what.
    pub(crate) fn context(&self) -> Context {
        self.context.clone().unwrap_or_default()
    }
}

/// Checks `[namespace/]alias[:tag]`, or an image's name.
fn check(name: &str) -> Result<(), ApiError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
    if name.is_empty() || name.len() > 255 || !name.bytes().all(fits) || name.starts_with(':') || name.ends_with(':') {
        let shown: String = name.chars().take(64).collect();
        return Err(ApiError::bad(format!("invalid template reference '{}'", shown.escape_default())));
    }
    Ok(())
}

impl E2b {
    /// The template that a create names by id, alias or snapshot.
    ///
    /// Errors: 400 for what is no name; 404.
    pub(crate) async fn template(&self, name: &str) -> Result<Template, ApiError> {
        check(name)?;
        let plain = name.strip_suffix(":default").unwrap_or(name);
        if plain == DEFAULT {
            return Ok(Template::of_image(DEFAULT));
        }
        for (id, text) in self.control().facts(SNAPSHOT).await? {
            let Ok(snapshot) = serde_json::from_str::<Snapshot>(&text) else { continue };
            if id == name || snapshot.template == plain || id == format!("{name}:{TAG_DEFAULT}") {
                let Snapshot { template, holder, image, name, context, .. } = snapshot;
                // Its start command is a service of it, as it was of its sandbox.
                let (alias, holder) = (name, Some(holder));
                return Ok(Template { id: template, alias, image, holder, context, start: None });
            }
        }
        if let Some(built) = self.built(name) {
            return Ok(built);
        }
        let images = self.control().images().await?;
        let found = images.iter().find(|image| image.name == plain || id_of(&image.name) == plain);
        found
            .map(|image| Template::of_image(&image.name))
            .ok_or_else(|| ApiError::new(404, format!("template '{name}' not found")))
    }

    /// Every image, as a template.
    pub(crate) async fn images(&self) -> Result<Vec<ImageView>, ApiError> {
        Ok(self.control().images().await?)
    }

    /// Keeps the files of a sandbox as they are now.
    pub(crate) async fn snapshot(
        &self,
        sandbox: &Arc<Sandbox>,
        name: Option<String>,
    ) -> Result<(String, Snapshot), ApiError> {
        if let Some(name) = &name {
            check(name)?;
            if self.built_exists(name).is_some() {
                return Err(ApiError::new(403, format!("'{name}' is a template that was built; take another name")));
            }
        }
        let (e2b, sandbox) = (self.clone(), Arc::clone(sandbox));
        to_the_end(async move {
            let _turn = e2b.turn(&sandbox).await?;
            if sandbox.phase() != Phase::Running {
                return Err(ApiError::new(409, format!("Sandbox {} is not running", sandbox.id)));
            }
            let holder = secret::id('s');
            e2b.note(&holder).await?;
            let made = e2b.fork_one(&sandbox.id, &holder, "snapshot", BTreeMap::new(), None, &[]).await;
            let image = e2b.made(&holder, made).await?.image;
            let kept = e2b.keep_snapshot(&sandbox, &holder, image, name).await;
            match kept {
                Ok(_) => e2b.noted(&holder).await,
                Err(_) => e2b.unmake(&holder).await,
            }
            kept
        })
        .await
    }

    /// Stops the computer that is to hold a snapshot, and has the name stand for it.
    async fn keep_snapshot(
        &self,
        sandbox: &Sandbox,
        holder: &str,
        image: String,
        name: Option<String>,
    ) -> Result<(String, Snapshot), ApiError> {
        let context = sandbox.facts().context.clone();
        let id = match &name {
            Some(name) if name.contains(':') => name.clone(),
            Some(name) => format!("{name}:{TAG_DEFAULT}"),
            None => format!("{holder}:{TAG_DEFAULT}"),
        };
        let (template, holder, sandbox) = (holder.to_owned(), holder.to_owned(), sandbox.id.clone());
        self.control().stop(&holder, Some(std::time::Duration::ZERO), &who()).await?;
        let snapshot = Snapshot { template, holder, image, sandbox, name, context, created_at: now() };
        let text = serde_json::to_string(&snapshot).map_err(|error| ApiError::new(500, error.to_string()))?;
        let _names = self.names().await?;
        let before = self.find_snapshot(&id).await?;
        // From here on nothing but the note may know of it.
        if let Some(before) = &before {
            self.note(&before.holder).await?;
        }
        let kept = self.control().keep_fact(SNAPSHOT, &id, text).await;
        if let Some(before) = before {
            match &kept {
                Ok(()) => {
                    failpoint::hit("e2b.snapshot.fact");
                    self.unmake(&before.holder).await;
                }
                Err(_) => self.noted(&before.holder).await,
            }
        }
        kept?;
        Ok((id, snapshot))
    }

    /// The right to change which snapshot a name stands for.
    async fn names(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, ApiError> {
        tokio::time::timeout(CHANGE_WAIT, self.book().snapshots.lock())
            .await
            .map_err(|_| ApiError::new(409, "other snapshots are still being kept or deleted"))
    }

    /// The computers that hold snapshots, and what was built.
    pub(crate) async fn holders(&self) -> Result<Vec<String>, den_control::Error> {
        let facts = self.control().facts(SNAPSHOT).await?;
        let read = |text: String| serde_json::from_str::<Snapshot>(&text).ok();
        let snapshots = facts.into_iter().filter_map(|(_, text)| Some(read(text)?.holder));
        Ok(snapshots.chain(self.shelf().holders()).collect())
    }

    /// Every snapshot, the newest first.
    pub(crate) async fn snapshots(&self) -> Result<Vec<(String, Snapshot)>, ApiError> {
        let facts = self.control().facts(SNAPSHOT).await?;
        let mut all: Vec<(String, Snapshot)> =
            facts.into_iter().filter_map(|(id, text)| Some((id, serde_json::from_str(&text).ok()?))).collect();
        all.sort_by(|one, two| two.1.created_at.cmp(&one.1.created_at).then_with(|| one.0.cmp(&two.0)));
        Ok(all)
    }

    async fn find_snapshot(&self, id: &str) -> Result<Option<Snapshot>, ApiError> {
        Ok(self.snapshots().await?.into_iter().find(|(there, _)| there == id).map(|(_, snapshot)| snapshot))
    }

    /// Forgets what was built, or a snapshot, and its files.
    ///
    /// Errors: 404; 409 while a build of it goes on; 400 while sandboxes that began from it are there; 403 for an image.
    pub(crate) async fn delete_template(&self, name: &str) -> Result<(), ApiError> {
        check(name)?;
        if self.delete_built(name).await? {
            return Ok(());
        }
        let (e2b, name) = (self.clone(), name.to_owned());
        to_the_end(async move { e2b.delete_snapshot(&name).await }).await
    }

    async fn delete_snapshot(&self, name: &str) -> Result<(), ApiError> {
        let _names = self.names().await?;
        let wanted = if name.contains(':') { name.to_owned() } else { format!("{name}:{TAG_DEFAULT}") };
        let found = self.snapshots().await?.into_iter().find(|(id, it)| *id == wanted || it.template == name);
        let Some((id, snapshot)) = found else {
            return match self.template(name).await {
                Ok(template) => Err(ApiError::new(
                    403,
                    format!("template '{}' is an image of this house: `den image rm` removes it", template.image),
                )),
                Err(error) => Err(error),
            };
        };
        if let Some(user) = self.book().all().iter().find(|sandbox| sandbox.facts().template == snapshot.template) {
            return Err(ApiError::bad(format!("snapshot '{id}' is used by sandbox {}", user.id)));
        }
        match self.control().remove(&snapshot.holder, Removal::ForGood, &who()).await {
            Ok(()) => {}
            Err(error) if error.code == "computer_not_found" => {}
            Err(error) => return Err(error.into()),
        }
        self.control().forget_fact(SNAPSHOT, &id).await?;
        Ok(())
    }
}
