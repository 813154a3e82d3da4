//! Images: what there is, who stands on it, and the jobs that bring them in.
//!
//! A job is watched through a bounded channel. A pull whose watcher goes away is ended, and goes on
//! where it was the next time; a build or an import is blocking code, which goes on to its end.

use std::{
    collections::HashMap,
    io::Read,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use den_api::{BuildImage, ErrorDetail, ImageView, JobEvent, PullImage};
use den_image::{BuildSpec, Image, ImageConfig, ImageError, ImageStore, ImportConfig, Progress, ProgressEvent, Recipe};
use den_model::ImageName;
use tokio::sync::mpsc;

use crate::{
    Error,
    control::{Control, Inner, blocking},
    limits::{JOB_EVENT_INTERVAL, JOB_EVENTS_MAX},
    spec::IMAGE_DEFAULT,
};

/// What a build starts from where it does not say.
const BUILD_FROM_DEFAULT: &str = "debian:bookworm";

/// A pull, import or build that goes on.
pub struct Job {
    events: mpsc::Receiver<JobEvent>,
}

impl Job {
    /// The next event; the last one is `Done` or `Failed`, and `None` comes after it.
    pub async fn recv(&mut self) -> Option<JobEvent> {
        self.events.recv().await
    }
}

impl Control {
    /// Every image, by name.
    pub async fn images(&self) -> Result<Vec<ImageView>, Error> {
        let store = self.0.images.clone();
        let images = blocking(move || store.list()).await??;
        Ok(images.iter().map(|image| self.0.image_view(image)).collect())
    }

    /// One image.
    ///
    /// Errors: `bad_name`, `image_not_found`.
    pub async fn image(&self, name: &str) -> Result<ImageView, Error> {
        let image = self.0.images.resolve(&image_name(name)?)?;
        Ok(self.0.image_view(&image))
    }

    /// Takes a name away, and its image with it if that was the last one.
    ///
    /// Errors: `image_not_found`; `image_in_use` with the computers that stand on it.
    pub async fn remove_image(&self, name: &str) -> Result<(), Error> {
        let name = image_name(name)?;
        let (inner, removed) = (Arc::clone(&self.0), name.clone());
        let result = blocking(move || {
            let in_use = |digest: &str| inner.registry.all().iter().any(|handle| handle.spec().image_digest == digest);
            inner.images.remove(&removed, &in_use)
        })
        .await?;
        match result {
            Ok(removed) => {
                tracing::info!(image = %name, digest = removed.digest, freed = %removed.freed, "an image's name is gone");
                Ok(())
            }
            Err(error @ ImageError::InUse { .. }) => {
                let users = match self.0.images.resolve(&name) {
                    Ok(image) => self.0.users(&image.digest).join("`, `"),
                    Err(_) => return Err(error.into()),
                };
                let error = Error::from(error);
                Err(Error { message: format!("the image `{name}` is in use by `{users}`"), ..error })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Fetches an image from a registry.
    ///
    /// Errors: `shutting_down`; all else comes as the job's last event.
    pub async fn pull_image(&self, pull: PullImage) -> Result<Job, Error> {
        self.0.open_for_work()?;
        let (news, job) = News::channel();
        let (inner, store) = (Arc::clone(&self.0), self.0.images.clone());
        self.0.tasks.spawn(async move {
            let progress: Arc<dyn Progress> = Arc::new(news.clone());
            let result = tokio::select! {
                () = news.events.closed() => return,
                result = store.pull(&pull.reference, progress) => result,
            };
            news.last(&inner, result).await;
        });
        Ok(job)
    }

    /// Builds an image from a Debian mirror.
    ///
    /// Errors: `bad_name`, `shutting_down`; all else comes as the job's last event.
    pub async fn build_image(&self, build: BuildImage) -> Result<Job, Error> {
        let BuildImage { name, from, packages, mirror } = build;
        let recipe = if name == IMAGE_DEFAULT { Recipe::Base } else { Recipe::Plain };
        let spec = BuildSpec {
            name: image_name(&name)?,
            from: from.unwrap_or_else(|| BUILD_FROM_DEFAULT.to_owned()),
            packages,
            mirror,
            recipe,
            ..BuildSpec::base()
        };
        self.run_job(move |store, progress| store.build(&spec, progress))
    }

    /// Takes in what a stream holds: a root filesystem, an OCI archive or what `docker save` writes.
    ///
    /// Errors: `bad_name`, `shutting_down`; all else comes as the job's last event.
    pub async fn import_image(&self, name: String, source: Box<dyn Read + Send>) -> Result<Job, Error> {
        let name = image_name(&name)?;
        let config = ImportConfig { config: ImageConfig::default(), source: None };
        self.run_job(move |store, progress| store.import_stream(source, &name, config, progress))
    }

    /// Takes in a file or folder of the host.
    ///
    /// Errors: `bad_name`, `shutting_down`; all else comes as the job's last event.
    pub async fn import_image_path(&self, name: String, path: PathBuf) -> Result<Job, Error> {
        let name = image_name(&name)?;
        self.run_job(move |store, progress| store.import(&path, &name, progress))
    }

    fn run_job(
        &self,
        work: impl FnOnce(&ImageStore, &dyn Progress) -> Result<Arc<Image>, ImageError> + Send + 'static,
    ) -> Result<Job, Error> {
        self.0.open_for_work()?;
        let (news, job) = News::channel();
        let (inner, store) = (Arc::clone(&self.0), self.0.images.clone());
        self.0.tasks.spawn(async move {
            let progress = news.clone();
            match blocking(move || work(&store, &progress)).await {
                Ok(result) => news.last(&inner, result).await,
                Err(error) => drop(news.events.send(JobEvent::Failed { error: detail(&error) }).await),
            }
        });
        Ok(job)
    }
}

impl Inner {
    /// The names of computers that stand on an image.
    fn users(&self, digest: &str) -> Vec<String> {
        let all = self.registry.all();
        all.iter()
            .filter(|handle| handle.spec().image_digest == digest)
            .map(|handle| handle.name().to_string())
            .collect()
    }

    fn image_view(&self, image: &Image) -> ImageView {
        let config = &image.config;
        ImageView {
            name: image.name.to_string(),
            digest: image.digest.clone(),
            layers: image.layers.len(),
            size: image.size.0,
            created_at: image.created_at,
            source: image.source.clone(),
            command: [&config.entrypoint[..], &config.cmd].concat(),
            env: config.env.clone(),
            working_dir: config.working_dir.clone(),
            user: config.user.clone(),
            used_by: self.users(&image.digest),
        }
    }
}

fn image_name(text: &str) -> Result<ImageName, Error> {
    text.parse().map_err(|error| Error::new("bad_name", 400, format!("the image's name: {error}")).because(error))
}

/// An error as the last event of a job.
fn detail(error: &Error) -> ErrorDetail {
    ErrorDetail {
        code: error.code.to_owned(),
        message: error.message.clone(),
        hint: error.hint.clone(),
        retryable: error.retryable,
        request_id: None,
    }
}

/// The way from a job to its watcher.
#[derive(Clone)]
struct News {
    events: mpsc::Sender<JobEvent>,
    /// The parts that were told of, and when last.
    told: Arc<Mutex<HashMap<String, Instant>>>,
}

impl News {
    fn channel() -> (Self, Job) {
        let (events, receiver) = mpsc::channel(JOB_EVENTS_MAX);
        (Self { events, told: Arc::default() }, Job { events: receiver })
    }

    async fn last(&self, inner: &Inner, result: Result<Arc<Image>, ImageError>) {
        let event = match result {
            Ok(image) => {
                tracing::info!(image = %image.name, digest = image.digest, size = %image.size, "an image is here");
                JobEvent::Done { image: inner.image_view(&image) }
            }
            Err(error) => {
                let error = Error::from(error);
                tracing::info!(code = error.code, error = error.chain(), "an image did not come");
                JobEvent::Failed { error: detail(&error) }
            }
        };
        let _ = self.events.send(event).await; // Its watcher may have gone.
    }

    /// Whether progress of this part is worth telling: the first, the last, and some between.
    fn is_due(&self, part: &str, is_last: bool) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let due = is_last || told.get(part).is_none_or(|at| at.elapsed() >= JOB_EVENT_INTERVAL);
        if due {
            told.insert(part.to_owned(), Instant::now());
        }
        due
    }
}

impl Progress for News {
    fn event(&self, event: ProgressEvent) {
        let event = match event {
            ProgressEvent::Stage { text } => JobEvent::Progress { stage: text, part: None, done: 0, total: None },
            ProgressEvent::Layer { layer, action, done_bytes, total_bytes } => {
                if !self.is_due(&layer, total_bytes == Some(done_bytes)) {
                    return;
                }
                JobEvent::Progress { stage: action, part: Some(layer), done: done_bytes, total: total_bytes }
            }
            ProgressEvent::Line { text } => JobEvent::Line { text },
        };
        // A watcher that does not keep up misses some of it; the job waits for nobody.
        let _ = self.events.try_send(event);
    }
}
