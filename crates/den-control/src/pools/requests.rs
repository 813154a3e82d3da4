//! What is asked of pools: making, changing, showing, removing them.

use std::{future::Future, str::FromStr, sync::Arc};

use den_api::{ChangePool, CreatePool, PoolList, PoolUse, PoolView, computer::Amount};
use den_model::{Bytes, Cpus, NameError, Pool, PoolLimits, PoolName, SizeError};
use den_store::Durability;
use den_sys::failpoint;

use super::{
    Refused,
    ledger::{Shown, Stays},
};
use crate::{
    Error, Who,
    control::{Control, Inner, now},
    errors::chain,
    limits::POOLS_MAX,
};

/// What takes a limit away.
const NO_LIMIT: &str = "none";

/// Reads the name of a pool.
///
/// Errors: `bad_name`.
pub(crate) fn pool_name(field: &str, text: &str) -> Result<PoolName, Error> {
    PoolName::from_str(text).map_err(|error: NameError| {
        Error::new("bad_name", 400, format!("`{field}`: {error}"))
            .hint("a pool's name is 1 to 63 of a-z, 0-9 and `-`, with no `-` at its ends")
    })
}

/// A limit as it is given: none is what it was.
fn limit<T: FromStr<Err = SizeError>>(
    field: &str,
    given: Option<&Amount>,
    before: Option<T>,
) -> Result<Option<T>, Error> {
    match given {
        None => Ok(before),
        Some(text) if text.0 == NO_LIMIT => Ok(None),
        Some(text) => text.0.parse().map(Some).map_err(|error| Error::bad_size(field, &error)),
    }
}

fn count(given: Option<&Amount>, before: Option<u64>) -> Result<Option<u64>, Error> {
    match given {
        None => Ok(before),
        Some(text) if text.0 == NO_LIMIT => Ok(None),
        Some(text) => {
            text.0.parse().map(Some).map_err(|_| {
                Error::bad_request(format!("`computers`: `{}` is neither a number nor `{NO_LIMIT}`", text.0))
            })
        }
    }
}

fn limits(given: &ChangePool, before: PoolLimits) -> Result<PoolLimits, Error> {
    Ok(PoolLimits {
        cpus: limit::<Cpus>("cpus", given.cpus.as_ref(), before.cpus)?,
        memory: limit::<Bytes>("memory", given.memory.as_ref(), before.memory)?,
        disk: limit::<Bytes>("disk", given.disk.as_ref(), before.disk)?,
        computers: count(given.computers.as_ref(), before.computers)?,
    })
}

fn view(shown: Shown) -> PoolView {
    let Shown { pool, held, running, trashed, cpus } = shown;
    let PoolLimits { cpus: cpus_limit, memory, disk, computers } = pool.limits;
    PoolView {
        name: pool.name.to_string(),
        cpus: cpus_limit,
        memory,
        disk,
        computers,
        used: PoolUse {
            computers: held.computers,
            running,
            trashed,
            cpus: cpus as f64 / 1000.0,
            memory: held.memory.0,
            disk: held.disk.0,
        },
        created_at: pool.created_at,
    }
}

impl Control {
    /// All pools, the default first.
    pub fn pools(&self) -> PoolList {
        PoolList { items: self.0.pools.ledger().shown().into_iter().map(view).collect() }
    }

    /// One pool.
    ///
    /// Errors: `bad_name`; `pool_not_found`.
    pub fn pool(&self, name: &str) -> Result<PoolView, Error> {
        let name = pool_name("pool", name)?;
        let shown = self.0.pools.ledger().shown();
        let shown = shown.into_iter().find(|shown| shown.pool.name == name);
        shown.map(view).ok_or_else(|| Error::pool_not_found(name.as_str()))
    }

    /// Makes a pool.
    ///
    /// Errors: `bad_name`, `bad_size`, `bad_request`; `pool_exists`; `too_many`.
    pub async fn new_pool(&self, request: CreatePool, who: &Who) -> Result<PoolView, Error> {
        self.0.open_for_work()?;
        let CreatePool { name, cpus, memory, disk, computers } = request;
        let name = pool_name("name", &name)?;
        let limits = limits(&ChangePool { cpus, memory, disk, computers }, PoolLimits::default())?;
        let inner = Arc::clone(&self.0);
        let who = who.0.clone();
        self.own(async move {
            let _one_at_a_time = inner.pools.changing.lock().await;
            {
                let ledger = inner.pools.ledger();
                if ledger.has(&name) {
                    return Err(Error::new("pool_exists", 409, format!("there is a pool `{name}` already"))
                        .hint(format!("`den pool set {name}` changes what it has")));
                }
                if ledger.count() >= POOLS_MAX {
                    return Err(crate::errors::too_many("pools", POOLS_MAX));
                }
            }
            let created_at = now();
            let number = inner.store.insert_pool(name.clone(), limits, created_at, Durability::Power).await?;
            failpoint::hit("pool.row");
            inner.pools.ledger().add(Pool { number, name: name.clone(), limits, created_at }, true);
            tracing::info!(pool = %name, number, who, "a pool was made");
            if let Err(error) = tell_launcher(&inner).await {
                // Nobody was let in.
                inner.pools.ledger().closed(&name, true);
                inner.store.delete_pool(number, Durability::Power).await?;
                return Err(error);
            }
            inner.pools.ledger().closed(&name, false);
            Ok(name)
        })
        .await
        .and_then(|name| self.pool(name.as_str()))
    }

    /// Gives a pool other limits, which hold at once.
    ///
    /// Errors: `bad_name`, `bad_size`, `bad_request`; `pool_not_found`; `pool_too_small` where more is taken already.
    pub async fn change_pool(&self, name: &str, request: ChangePool, who: &Who) -> Result<PoolView, Error> {
        self.0.open_for_work()?;
        let name = pool_name("pool", name)?;
        limits(&request, PoolLimits::default())?;
        let inner = Arc::clone(&self.0);
        let who = who.0.clone();
        self.own(async move {
            let _one_at_a_time = inner.pools.changing.lock().await;
            let tightened = inner.pools.ledger().tighten(&name, |before| limits(&request, *before).unwrap_or(*before));
            let (before, to) = tightened.map_err(|refused| match refused {
                Refused::Full(pool, short) => Error::pool_too_small(&pool, &short),
                refused @ Refused::NoPool(_) => refused.into(),
            })?;
            failpoint::hit("pool.tightened");
            let recorded = inner.store.set_pool(name.clone(), to, Durability::Power).await;
            if let Err(error) = recorded {
                inner.pools.ledger().settle(&name, before);
                return Err(error.into());
            }
            failpoint::hit("pool.set");
            inner.pools.ledger().settle(&name, to);
            tracing::info!(pool = %name, who, ?to, "a pool has other limits");
            if let Err(error) = tell_launcher(&inner).await {
                // What the kernel holds and what is promised shall be the same.
                inner.pools.ledger().settle(&name, before);
                inner.store.set_pool(name.clone(), before, Durability::Power).await?;
                let again = tell_launcher(&inner).await;
                again.unwrap_or_else(|error| {
                    tracing::error!(error = error.chain(), "the kernel may hold a pool to other limits");
                });
                return Err(error);
            }
            Ok(name)
        })
        .await
        .and_then(|name| self.pool(name.as_str()))
    }

    /// Removes a pool that nobody is in.
    ///
    /// Errors: `bad_name`; `pool_not_found`; `pool_in_use`; `bad_request` for the default.
    pub async fn remove_pool(&self, name: &str, who: &Who) -> Result<(), Error> {
        self.0.open_for_work()?;
        let name = pool_name("pool", name)?;
        if name.is_default() {
            return Err(Error::bad_request(
                "the pool `default` cannot be removed: it is where computers go that name none",
            )
            .hint(
                "`den pool set default --cpus none --memory none --disk none --computers none` takes its limits away",
            ));
        }
        let inner = Arc::clone(&self.0);
        let who = who.0.clone();
        self.own(async move {
            let _one_at_a_time = inner.pools.changing.lock().await;
            let closed = inner.pools.ledger().close(&name);
            let number = closed.map_err(|stays| match stays {
                Stays::NoPool => Error::pool_not_found(name.as_str()),
                Stays::InUse { computers, trashed } => Error::pool_in_use(&name, computers, trashed),
            })?;
            failpoint::hit("pool.closed");
            let deleted = inner.store.delete_pool(number, Durability::Power).await;
            inner.pools.ledger().closed(&name, deleted.is_ok());
            deleted?;
            failpoint::hit("pool.gone");
            tracing::info!(pool = %name, who, "a pool is gone");
            if let Err(error) = tell_launcher(&inner).await {
                tracing::warn!(error = error.chain(), "the cgroup of a pool is left until the next start");
            }
            Ok(())
        })
        .await
    }

    /// Does it whether its caller stays or not.
    async fn own<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.0.tasks.spawn(work).await.map_err(|error| Error::internal("a task panicked").because(error))?
    }
}

/// Tells the launcher what the kernel has to hold computers to.
pub(crate) async fn tell_launcher(inner: &Inner) -> Result<(), Error> {
    let caps = inner.pools.ledger().caps();
    inner.machines.set_pools(caps).await.map_err(|error| {
        tracing::warn!(error = chain(&error), "the launcher did not take the limits of pools");
        Error::from(error)
    })
}
