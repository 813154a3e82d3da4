//! A method per endpoint.

use http::{HeaderName, HeaderValue, Method, header};

use super::{Body, ByteStream, Client, ClientError, FileHead, Lines, OutputStream, Target, session::Session};
use crate::{
    BackUp, BackupEvent, BuildImage, ComputerView, CreateComputer, EntryList, EntryView, ExecRequest, ExecResult,
    FileOperation, ImageList, ImageView, JobEvent, NetChange, NetCheck, NetDecision, NetLogPage, NetView, Page,
    PullImage, Shutdown, SignalRequest, StatView, StepView, StopComputer, VersionView, output::OUTPUT_MEDIA_TYPE,
};

/// No body.
pub(super) const NOTHING: Option<&()> = None;

/// Which computers a list is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ComputerFilter {
    /// Only those in this state.
    pub state: Option<String>,
    /// Only those with all these labels, `K=V`.
    pub labels: Vec<String>,
    /// Only those after this one: [`Page::next`].
    pub after: Option<String>,
    /// At most this many: 1000 at most, 100 without.
    pub limit: Option<u32>,
}

/// Which records of a computer's network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetLogFilter {
    /// From here on: [`NetLogPage::next`].
    pub cursor: Option<String>,
    /// At most this many: 1000 at most, 100 without.
    pub limit: Option<u32>,
    /// The latest this many, in place of a cursor and a limit.
    pub last: Option<u32>,
    /// Only this kind: `open`, `close`, `http`, `dns`, `limit`, `gate`.
    pub kind: Option<String>,
    /// Only what was refused.
    pub denied: bool,
}

/// In which order a list comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The oldest first.
    Ascending,
    /// The newest first.
    Descending,
}

/// How a file is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteFile {
    /// Permission bits; those of the file that is there, or 0644.
    pub mode: Option<u32>,
    /// `user[:group]`, names or numbers.
    pub owner: Option<String>,
    /// Modified, microseconds since the epoch.
    pub mtime: Option<i64>,
    /// Makes the directories above it.
    pub parents: bool,
    /// Adds to the end.
    pub append: bool,
}

impl Client {
    pub(super) fn computer_target(name: &str, rest: &str) -> Target {
        Target::new("/v1/computers/", name, rest)
    }

    /// Who answers.
    pub async fn version(&self) -> Result<VersionView, ClientError> {
        self.json(Method::GET, "/v1/version", NOTHING).await
    }

    /// Makes a computer; it runs when this returns. With `key` a repeated call gives the same one.
    pub async fn create(&self, create: &CreateComputer, key: Option<&str>) -> Result<ComputerView, ClientError> {
        let mut request = self.json_request(Method::POST, "/v1/computers", Some(create));
        if let Some(key) = key {
            let value = HeaderValue::from_str(key).map_err(|_| self.malformed("an idempotency key is no header"))?;
            request.headers_mut().insert(HeaderName::from_static("idempotency-key"), value);
        }
        self.send(request).await?.json().await
    }

    /// One page of the computers.
    pub async fn computers(&self, filter: &ComputerFilter) -> Result<Page<ComputerView>, ClientError> {
        let mut target = Target::plain("/v1/computers")
            .ask_some("after", filter.after.as_ref())
            .ask_some("limit", filter.limit)
            .ask_some("state", filter.state.as_ref());
        for label in &filter.labels {
            target = target.ask("label", label);
        }
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// All computers that the filter lets through, page by page.
    pub async fn all_computers(&self, filter: &ComputerFilter) -> Result<Vec<ComputerView>, ClientError> {
        let mut filter = ComputerFilter { limit: Some(1000), ..filter.clone() };
        let mut all = Vec::new();
        loop {
            let page = self.computers(&filter).await?;
            all.extend(page.items);
            match page.next {
                Some(next) => filter.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// One computer, with what it uses.
    pub async fn computer(&self, name: &str) -> Result<ComputerView, ClientError> {
        self.json(Method::GET, &Self::computer_target(name, "").text, NOTHING).await
    }

    /// As [`Client::computer`], with what can be done with its memory.
    pub async fn computer_and_memory(&self, name: &str) -> Result<ComputerView, ClientError> {
        self.json(Method::GET, &Self::computer_target(name, "?memory=true").text, NOTHING).await
    }

    /// Unmakes a computer.
    pub async fn remove(&self, name: &str) -> Result<(), ClientError> {
        self.nothing(Method::DELETE, &Self::computer_target(name, "").text, NOTHING).await
    }

    /// Boots a stopped computer.
    pub async fn start(&self, name: &str) -> Result<ComputerView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/start").text, NOTHING).await
    }

    /// Ends all processes of a computer.
    pub async fn stop(&self, name: &str, stop: &StopComputer) -> Result<ComputerView, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/stop").text, Some(stop)).await
    }

    /// Runs a command and waits for its end.
    pub async fn exec(&self, name: &str, exec: &ExecRequest) -> Result<ExecResult, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/steps").text, Some(exec)).await
    }

    /// Starts a command and returns at once.
    pub async fn exec_detached(&self, name: &str, exec: &ExecRequest) -> Result<StepView, ClientError> {
        let exec = ExecRequest { detach: true, ..exec.clone() };
        self.json(Method::POST, &Self::computer_target(name, "/steps").text, Some(&exec)).await
    }

    /// Runs a command and gives its output as it comes.
    pub async fn exec_stream(&self, name: &str, exec: &ExecRequest) -> Result<OutputStream, ClientError> {
        let mut request = self.json_request(Method::POST, &Self::computer_target(name, "/steps").text, Some(exec));
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(OUTPUT_MEDIA_TYPE));
        Ok(OutputStream::new(self.send(request).await?))
    }

    /// Runs a command with standard input.
    pub async fn exec_session(&self, name: &str, exec: &ExecRequest) -> Result<Session, ClientError> {
        Session::open(self, &Self::computer_target(name, "/exec").text, Some(exec)).await
    }

    /// Back to a running step, in both directions, with its output from byte `from`.
    pub async fn attach(&self, name: &str, step: u64, from: u64) -> Result<Session, ClientError> {
        let target = Self::computer_target(name, &format!("/steps/{step}/attach")).ask_some("from", Some(from));
        Session::open(self, &target.text, None).await
    }

    /// A step's output from byte `from`; with `follow` until the step ends.
    pub async fn output(&self, name: &str, step: u64, from: u64, follow: bool) -> Result<OutputStream, ClientError> {
        let target = Self::computer_target(name, &format!("/steps/{step}/output"))
            .ask_some("from", Some(from))
            .ask_some("follow", Some(follow));
        let mut request = self.json_request(Method::GET, &target.text, NOTHING);
        request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(OUTPUT_MEDIA_TYPE));
        Ok(OutputStream::new(self.send(request).await?))
    }

    /// One page of a computer's steps.
    pub async fn steps(
        &self,
        name: &str,
        after: Option<&str>,
        limit: Option<u32>,
        order: Order,
    ) -> Result<Page<StepView>, ClientError> {
        let order = if order == Order::Ascending { "asc" } else { "desc" };
        let target =
            Self::computer_target(name, "/steps").ask_some("after", after).ask_some("limit", limit).ask("order", order);
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// One step.
    pub async fn step(&self, name: &str, step: u64) -> Result<StepView, ClientError> {
        self.json(Method::GET, &Self::computer_target(name, &format!("/steps/{step}")).text, NOTHING).await
    }

    /// Sends a signal to a step.
    pub async fn signal(&self, name: &str, step: u64, signal: &SignalRequest) -> Result<(), ClientError> {
        let target = Self::computer_target(name, &format!("/steps/{step}/signal"));
        self.nothing(Method::POST, &target.text, Some(signal)).await
    }

    /// What a path inside is.
    pub async fn stat(&self, name: &str, path: impl AsRef<[u8]>, follow: bool) -> Result<StatView, ClientError> {
        let target = Self::computer_target(name, "/files/stat").path(path.as_ref()).ask_some("follow", Some(follow));
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// What a directory inside holds, `depth` levels deep.
    pub async fn list(&self, name: &str, path: impl AsRef<[u8]>, depth: u32) -> Result<Vec<EntryView>, ClientError> {
        let target = Self::computer_target(name, "/files/list").path(path.as_ref()).ask_some("depth", Some(depth));
        self.json::<EntryList>(Method::GET, &target.text, NOTHING).await.map(|list| list.items)
    }

    /// Changes one thing among the files.
    pub async fn change(&self, name: &str, operation: &FileOperation) -> Result<(), ClientError> {
        self.nothing(Method::POST, &Self::computer_target(name, "/files").text, Some(operation)).await
    }

    /// Reads a file.
    pub async fn read_file(&self, name: &str, path: impl AsRef<[u8]>) -> Result<(FileHead, ByteStream), ClientError> {
        let target = Self::computer_target(name, "/files").path(path.as_ref());
        let answer = self.send(self.json_request(Method::GET, &target.text, NOTHING)).await?;
        Ok((FileHead::read(&answer)?, ByteStream::new(answer)))
    }

    /// Writes a file: it is there whole, or it is as it was.
    pub async fn write_file(
        &self,
        name: &str,
        path: impl AsRef<[u8]>,
        how: &WriteFile,
        body: Body,
    ) -> Result<StatView, ClientError> {
        let target = Self::write_target(name, path.as_ref(), how);
        self.upload(Method::PUT, &target.text, "application/octet-stream", body).await?.json().await
    }

    pub(super) fn write_target(name: &str, path: &[u8], how: &WriteFile) -> Target {
        let mut target = Self::computer_target(name, "/files")
            .path(path)
            .ask_some("mode", how.mode.map(|mode| format!("{mode:04o}")))
            .ask_some("owner", how.owner.as_ref())
            .ask_some("mtime", how.mtime);
        if how.parents {
            target = target.ask("parents", "true");
        }
        if how.append {
            target = target.ask("append", "true");
        }
        target
    }

    /// Packs a path inside into a tar stream. Names in it begin with the path's last component.
    pub async fn tar_out(&self, name: &str, path: impl AsRef<[u8]>, follow: bool) -> Result<ByteStream, ClientError> {
        let target = Self::computer_target(name, "/tar").path(path.as_ref()).ask_some("follow", Some(follow));
        Ok(ByteStream::new(self.send(self.json_request(Method::GET, &target.text, NOTHING)).await?))
    }

    /// Unpacks a tar stream below a directory inside. `rename` replaces the first component of the
    /// names in it, `owner` all owners.
    pub async fn tar_in(
        &self,
        name: &str,
        path: impl AsRef<[u8]>,
        owner: Option<&str>,
        rename: Option<&[u8]>,
        body: Body,
    ) -> Result<(), ClientError> {
        let mut target = Self::computer_target(name, "/tar").path(path.as_ref()).ask_some("owner", owner);
        if let Some(rename) = rename {
            target = target.ask("rename", rename);
        }
        self.upload(Method::PUT, &target.text, "application/x-tar", body).await?.bytes().await.map(drop)
    }

    /// What a computer may reach.
    pub async fn net(&self, name: &str) -> Result<NetView, ClientError> {
        self.json(Method::GET, &Self::computer_target(name, "/net").text, NOTHING).await
    }

    /// Changes what a computer may reach: all of it or nothing.
    pub async fn change_net(&self, name: &str, change: &NetChange) -> Result<NetView, ClientError> {
        self.json(Method::PATCH, &Self::computer_target(name, "/net").text, Some(change)).await
    }

    /// What would be decided about a flow.
    pub async fn check_net(&self, name: &str, check: &NetCheck) -> Result<NetDecision, ClientError> {
        self.json(Method::POST, &Self::computer_target(name, "/net/check").text, Some(check)).await
    }

    /// Some records of a computer's network.
    pub async fn net_log(&self, name: &str, filter: &NetLogFilter) -> Result<NetLogPage, ClientError> {
        let mut target = Self::computer_target(name, "/net/log")
            .ask_some("cursor", filter.cursor.as_ref())
            .ask_some("limit", filter.limit)
            .ask_some("last", filter.last)
            .ask_some("kind", filter.kind.as_ref());
        if filter.denied {
            target = target.ask("denied", "true");
        }
        self.json(Method::GET, &target.text, NOTHING).await
    }

    /// All images.
    pub async fn images(&self) -> Result<Vec<ImageView>, ClientError> {
        self.json::<ImageList>(Method::GET, "/v1/images", NOTHING).await.map(|list| list.items)
    }

    /// One image.
    pub async fn image(&self, image: &str) -> Result<ImageView, ClientError> {
        self.json(Method::GET, &Self::image_target(image), NOTHING).await
    }

    /// Removes an image.
    pub async fn remove_image(&self, image: &str) -> Result<(), ClientError> {
        self.nothing(Method::DELETE, &Self::image_target(image), NOTHING).await
    }

    /// `/v1/images/{*name}`: slashes of the name stay slashes.
    fn image_target(image: &str) -> String {
        let mut target = String::from("/v1/images/");
        super::encode(&mut target, image.as_bytes());
        target
    }

    /// Makes a backup of the house.
    pub async fn back_up(&self, backup: &BackUp) -> Result<Lines<BackupEvent>, ClientError> {
        Ok(Lines::new(self.send(self.json_request(Method::POST, "/v1/backups", Some(backup))).await?))
    }

    /// Fetches an image from a registry.
    pub async fn pull_image(&self, pull: &PullImage) -> Result<Lines<JobEvent>, ClientError> {
        Ok(Lines::new(self.send(self.json_request(Method::POST, "/v1/images/pull", Some(pull))).await?))
    }

    /// Builds an image from Debian packages.
    pub async fn build_image(&self, build: &BuildImage) -> Result<Lines<JobEvent>, ClientError> {
        Ok(Lines::new(self.send(self.json_request(Method::POST, "/v1/images/build", Some(build))).await?))
    }

    /// Imports an image from a tar of a root, an OCI archive or the output of docker save.
    pub async fn import_image(&self, image: &str, body: Body) -> Result<Lines<JobEvent>, ClientError> {
        let target = Target::plain("/v1/images/import").ask("name", image);
        Ok(Lines::new(self.upload(Method::POST, &target.text, "application/octet-stream", body).await?))
    }

    /// Imports an image from a file or folder on the daemon's host.
    pub async fn import_image_path(&self, image: &str, path: impl AsRef<[u8]>) -> Result<Lines<JobEvent>, ClientError> {
        let target = Target::plain("/v1/images/import").ask("name", image).path(path.as_ref());
        Ok(Lines::new(self.send(self.json_request(Method::POST, &target.text, NOTHING)).await?))
    }

    /// Stops all computers, then the daemon.
    pub async fn shutdown(&self, shutdown: &Shutdown) -> Result<(), ClientError> {
        self.nothing(Method::POST, "/v1/shutdown", Some(shutdown)).await
    }

    async fn upload(
        &self,
        method: Method,
        target: &str,
        media_type: &'static str,
        body: Body,
    ) -> Result<super::Answer, ClientError> {
        let request = self
            .request(method, target)
            .header(header::CONTENT_TYPE, media_type)
            .body(body)
            .expect("paths are percent-encoded");
        self.send(request).await
    }
}
