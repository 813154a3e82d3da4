//! The computer as its programs see it: its share, where the kernel would show the host.
//!
//! ```text
//! Hello ─► up: share found ─ FUSE made ─ thread `view` ◄── requests of the kernel ── /proc/meminfo, stat …
//!               │                            ▲     ◄── calls that wait ── statfs, sysinfo, sched_getaffinity
//!               └─ thread `bind`: files over the kernel's own ─► ready: the first command starts
//! down ─► files taken away, thread told to end; the listener is the caller's, to be kept open
//! ```
//!
//! Invariants:
//! - The host tells nothing but where the disk is counted: limits are read where the kernel keeps them, so a resize
//!   shows at once.
//! - The thread reads no file that it serves itself, makes no call that it answers itself (see
//!   [`den_sys::notify::OWN`]), looks up no path that may keep it waiting, and asks no file system inside but the
//!   root anything.
//! - What is not there (no /dev/fuse, no listener, no limit) shows the host, as before; nothing fails for it.
//! - Nobody but the listener's holders can answer: while it is open somewhere and not served, callers wait. So the
//!   thread owns it: if the thread ends, by whatever error, calls fail with `ENOSYS`.
//!
//! Not here: time since boot, which a time namespace gives to all (`husk`).

mod calls;
mod files;
mod fuse;
mod share;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use den_sys::mount::Detached;
use den_sys::notify::Listener;
use den_sys::{SysError, clone, mount};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::mount::UnmountFlags;
use tokio::sync::watch;

use self::files::FILES;
use self::fuse::Server;
use self::share::Share;

/// How long a command waits at most for the files to be there.
const READY_WAIT: Duration = Duration::from_secs(2);
/// How long the thread is waited for at its start.
const START_WAIT: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// How long it is waited for at its end: what is inside may hold it up, and is not to hold up more.
const END_WAIT: Duration = Duration::from_secs(2);
/// The stack of its threads, in bytes: none recurses.
const STACK_BYTES: usize = 128 << 10;

/// The view of one computer. It lives on the agent's one thread.
pub struct View {
    counter: Option<String>,
    /// Not served yet.
    listener: RefCell<Option<Arc<Listener>>>,
    running: RefCell<Option<Running>>,
    ready: watch::Sender<bool>,
    begun: Cell<bool>,
}

/// The mount, and the thread that lays its files.
type Laid = (Arc<Detached>, JoinHandle<()>);

struct Running {
    stop: Arc<OwnedFd>,
    /// The thread's, as long as it serves it.
    listener: Weak<Listener>,
    /// Nothing is sent: the other end goes once the files are there, or cannot be.
    shown: mpsc::Receiver<std::convert::Infallible>,
    /// Nothing is sent: the other end is the thread's, and goes with it.
    end: mpsc::Receiver<std::convert::Infallible>,
}

impl View {
    /// One that is not up yet. `listener` is where calls arrive, if they do; `counter` is where the disk is counted,
    /// below a sysfs.
    pub fn new(listener: Option<OwnedFd>, counter: Option<String>) -> Self {
        let listener = listener.map(|fd| Arc::new(Listener::from_fd(fd)));
        let (ready, _) = watch::channel(false);
        Self { counter, listener: RefCell::new(listener), running: RefCell::default(), ready, begun: Cell::new(false) }
    }

    /// Brings it up, the first time that this is called. What is behind it goes on beside the caller.
    pub fn begin(&self) {
        if !self.begun.replace(true) {
            self.up(None);
        }
    }

    /// Waits until the files are there, or cannot be.
    pub async fn ready(&self) {
        self.begin();
        if *self.ready.borrow() {
            return;
        }
        let mut ready = self.ready.subscribe();
        if tokio::time::timeout(READY_WAIT, ready.wait_for(|ready| *ready)).await.is_err() {
            // One command has waited long enough for all.
            self.ready.send_replace(true);
        }
    }

    /// Brings it up: after [`View::down`] with the listener that it gave back.
    pub fn up(&self, listener: Option<OwnedFd>) {
        if let Some(listener) = listener {
            *self.listener.borrow_mut() = Some(Arc::new(Listener::from_fd(listener)));
        }
        self.ready.send_replace(false);
        // Better refused than kept waiting: it goes with whoever was to serve it.
        let listener = self.listener.borrow_mut().take();
        match self.start(listener) {
            Ok(running) => *self.running.borrow_mut() = Some(running),
            Err(error) => {
                eprintln!("den-agent: no view of its own: {error}");
                self.ready.send_replace(true);
            }
        }
    }

    fn start(&self, listener: Option<Arc<Listener>>) -> Result<Running, SysError> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC).map(Arc::new).map_err(SysError::rustix("eventfd", ""));
        let (stop, started) = (event()?, event()?);
        let threads = || std::thread::Builder::new().stack_size(STACK_BYTES);
        let (of_thread, end) = mpsc::channel();
        let (of_files, shown) = mpsc::channel();
        {
            let (stop, started, ready, listener) =
                (stop.clone(), started.clone(), self.ready.clone(), listener.clone());
            let counter = self.counter.clone();
            let main = move || {
                let _end: mpsc::Sender<_> = of_thread;
                tell(&started);
                let share = match Share::find(counter.as_deref()) {
                    Ok(share) => Some(share),
                    Err(error) => {
                        eprintln!("den-agent: its share is not known: {error}");
                        None
                    }
                };
                let (server, shown) = share.as_ref().and_then(|share| show(share, &ready, of_files)).unzip();
                if server.is_none() {
                    ready.send_replace(true);
                }
                serve(share, server, listener, &stop);
                if let Some((mount, bind)) = shown {
                    let _ = bind.join();
                    drop(mount);
                }
            };
            threads().spawn(main).map_err(|error| SysError::io("thread", Path::new("view"), &error))?;
        }
        let held = listener.as_ref().map(Arc::downgrade).unwrap_or_default();
        // A thread's first moments are the library's: what it asks of the kernel there nobody else answers yet.
        while let Some(listener) = &listener {
            let mut wait = [PollFd::new(&started, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
            if !matches!(poll(&mut wait, Some(&START_WAIT)), Ok(1..)) || !wait[0].revents().is_empty() {
                break;
            }
            if let Ok(Some(call)) = listener.receive() {
                listener.proceed(&call);
            }
        }
        Ok(Running { stop, listener: held, shown, end })
    }

    /// Takes it down: the kernel's own files are seen again. Returns the listener: as long as it is open somewhere,
    /// calls wait for it to be served again; once it is closed everywhere, they fail with `ENOSYS`.
    pub fn down(&self) -> Option<OwnedFd> {
        let mut listener = self.listener.borrow_mut().take();
        if let Some(running) = self.running.borrow_mut().take() {
            listener = listener.or_else(|| running.listener.upgrade());
            running.end();
        }
        // A path may still be looked up by a thread that holds it too.
        Arc::try_unwrap(listener?).map(Listener::into_fd).or_else(|kept| kept.as_fd().try_clone_to_owned()).ok()
    }
}

impl Running {
    /// Takes the files away and has the thread end. Something of somebody inside may lie over them and never answer:
    /// so another thread does it, and is waited for only so long.
    fn end(self) {
        // Files that are laid after they were taken away would stay, with nobody to serve them.
        let _ = self.shown.recv_timeout(END_WAIT);
        let (taking, taken) = mpsc::channel::<std::convert::Infallible>();
        let take = move || {
            // It waits for the server too: see `show`.
            match clone::apart_from(&[]) {
                Ok(()) => clone::close_others(&[]),
                Err(error) => eprintln!("den-agent: {error}"),
            }
            take_away();
            drop(taking);
        };
        if std::thread::Builder::new().stack_size(STACK_BYTES).spawn(take).is_err() {
            // There is no room for one more.
            take_away();
        }
        // Over when the sender has gone.
        let _ = taken.recv_timeout(END_WAIT);
        tell(&self.stop);
        if self.end.recv_timeout(END_WAIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("den-agent: something inside holds up what shows it its share");
        }
    }
}

fn take_away() {
    for target in FILES.iter().flat_map(|(_, _, targets)| *targets) {
        if is_ours(target) {
            let _ = mount::unmount(Path::new(target), UnmountFlags::DETACH);
        }
    }
}

/// Whether what lies there is one of the view's files.
fn is_ours(target: &str) -> bool {
    const FUSE: u64 = 0x6573_5546;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(target, flags, rustix::fs::Mode::empty())
        .ok()
        .and_then(|fd| den_sys::notify::file_system(&fd).ok())
        .is_some_and(|found| found.kind == FUSE)
}

fn tell(event: &OwnedFd) {
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Makes the file system, and has a thread lay its files over the kernel's: that asks of the server.
///
/// That thread must not be the mount's last owner: it has descriptors of its own, so the one that all others have would
/// stay open, and nothing that has one of FUSE can be written down. Whoever drops the mount waits for it first.
fn show(
    share: &Share,
    ready: &watch::Sender<bool>,
    shown: mpsc::Sender<std::convert::Infallible>,
) -> Option<(Server, Laid)> {
    let (server, mount) = match Server::new() {
        Ok((server, mount)) => (server, Arc::new(mount)),
        Err(error) => {
            eprintln!("den-agent: no files of its own: {error}");
            return None;
        }
    };
    let known: Vec<_> = FILES.iter().filter(|(_, file, _)| file.is_known(share)).collect();
    let (ready, part_of, device) = (ready.clone(), Arc::clone(&mount), server.as_fd().as_raw_fd());
    let bind = move || {
        let _shown = shown;
        // It waits for the server. Were the server killed with a question in hand, and its connection open here, this
        // thread would wait for ever, and nothing could end the computer.
        if let Err(error) = clone::apart_from(&[device]) {
            eprintln!("den-agent: {error}");
        }
        for (name, _, targets) in known {
            for target in *targets {
                // A kernel may lack one.
                let _ = part_of.part(name).and_then(|part| part.attach(target));
            }
        }
        ready.send_replace(true);
    };
    let bind = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(bind).ok()?;
    Some((server, (mount, bind)))
}

/// Serves both until it is told to stop.
fn serve(share: Option<Share>, server: Option<Server>, listener: Option<Arc<Listener>>, stop: &OwnedFd) {
    let (mut server, mut listener) = (server, listener);
    loop {
        let mut wait = vec![PollFd::new(stop, PollFlags::IN)];
        let requests = server.as_ref().map(|server| {
            wait.push(PollFd::new(server, PollFlags::IN));
            wait.len() - 1
        });
        let calls = listener.as_ref().map(|listener| {
            wait.push(PollFd::new(listener, PollFlags::IN));
            wait.len() - 1
        });
        match poll(&mut wait, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let events = |place: Option<usize>| place.map_or(PollFlags::empty(), |place| wait[place].revents());
        let (stopped, requests, calls) = (events(Some(0)), events(requests), events(calls));
        drop(wait);
        if !stopped.is_empty() {
            return;
        }
        if !requests.is_empty()
            && let (Some(of), Some(share)) = (&mut server, &share)
            && !of.serve(share)
        {
            server = None;
        }
        if calls.contains(PollFlags::IN)
            && let Some(of) = &listener
        {
            match (of.receive(), &share) {
                (Ok(Some(call)), Some(share)) => calls::answer(of, share, call),
                (Ok(Some(call)), None) => of.proceed(&call),
                (Ok(None), _) => {}
                (Err(_), _) => listener = None,
            }
        } else if !calls.is_empty() {
            // Nobody is left under the filter.
            listener = None;
        }
    }
}
