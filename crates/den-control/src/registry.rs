//! Which computers there are: by id, by name, by a prefix of the id.
//!
//! Locks are held for a look or a change of the two maps and never across an await.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use den_model::{ComputerId, ComputerName};

use crate::Error;

/// How much of an id names a computer at least, without `cmp_`.
const PREFIX_LENGTH_MIN: usize = 6;

/// What the registry holds: something with an id and a name.
pub(crate) trait Entry {
    fn id(&self) -> ComputerId;
    fn name(&self) -> &ComputerName;
}

pub(crate) struct Registry<E> {
    maps: RwLock<Maps<E>>,
}

struct Maps<E> {
    by_id: BTreeMap<ComputerId, Arc<E>>,
    by_name: HashMap<String, ComputerId>,
}

impl<E: Entry> Registry<E> {
    pub(crate) fn new() -> Self {
        Self { maps: RwLock::new(Maps { by_id: BTreeMap::new(), by_name: HashMap::new() }) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps<E>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps<E>> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a computer under its name, or says who has the name.
    pub(crate) fn insert(&self, entry: Arc<E>) -> Result<(), ComputerId> {
        let mut maps = self.write();
        if let Some(&holder) = maps.by_name.get(entry.name().as_str()) {
            return Err(holder);
        }
        maps.by_name.insert(entry.name().as_str().to_owned(), entry.id());
        maps.by_id.insert(entry.id(), entry);
        Ok(())
    }

    /// Who has the name.
    pub(crate) fn holder(&self, name: &ComputerName) -> Option<ComputerId> {
        self.read().by_name.get(name.as_str()).copied()
    }

    /// Lets others take the name.
    pub(crate) fn free_name(&self, entry: &E) {
        let mut maps = self.write();
        if maps.by_name.get(entry.name().as_str()) == Some(&entry.id()) {
            maps.by_name.remove(entry.name().as_str());
        }
    }

    /// Forgets a computer.
    pub(crate) fn remove(&self, entry: &E) {
        self.free_name(entry);
        self.write().by_id.remove(&entry.id());
    }

    pub(crate) fn get(&self, id: ComputerId) -> Option<Arc<E>> {
        self.read().by_id.get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<E>> {
        self.read().by_id.values().cloned().collect()
    }

    /// Up to `limit` computers after `after` that `admits` takes, oldest first, and whether there are more.
    pub(crate) fn page(
        &self,
        after: Option<ComputerId>,
        limit: usize,
        admits: impl Fn(&E) -> bool,
    ) -> (Vec<Arc<E>>, bool) {
        let maps = self.read();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut found =
            maps.by_id.range((from, Bound::Unbounded)).map(|(_, entry)| entry).filter(|entry| admits(entry));
        let page = found.by_ref().take(limit).cloned().collect();
        (page, found.next().is_some())
    }

    /// The computer that `text` names: a name, an id, or the beginning of one.
    ///
    /// Errors: `computer_not_found`; `ambiguous_id`.
    pub(crate) fn find(&self, text: &str) -> Result<Arc<E>, Error> {
        let maps = self.read();
        if let Some(entry) = maps.by_name.get(text).and_then(|id| maps.by_id.get(id)) {
            return Ok(Arc::clone(entry));
        }
        let none = || Error::computer_not_found(text);
        let digits = text.strip_prefix("cmp_").ok_or_else(none)?;
        if digits.len() < PREFIX_LENGTH_MIN || digits.len() > 26 {
            return Err(none());
        }
        // Ids sort as their texts do, so those with one beginning lie together.
        let first: ComputerId = format!("cmp_{digits:0<26}").parse().map_err(|_| none())?;
        let mut from = maps.by_id.range(first..).take_while(|(id, _)| id.to_string().starts_with(text));
        match (from.next(), from.next()) {
            (Some((_, entry)), None) => Ok(Arc::clone(entry)),
            (None, _) => Err(none()),
            (Some(_), Some(_)) => {
                Err(Error::new("ambiguous_id", 400, format!("`{text}` is the beginning of several ids"))
                    .hint("give more of it, or the name"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing(ComputerId, ComputerName);
    impl Entry for Thing {
        fn id(&self) -> ComputerId {
            self.0
        }
        fn name(&self) -> &ComputerName {
            &self.1
        }
    }

    fn thing(id: &str, name: &str) -> Arc<Thing> {
        Arc::new(Thing(format!("cmp_{id:0<26}").parse().unwrap(), name.parse().unwrap()))
    }

    fn registry() -> Registry<Thing> {
        let registry = Registry::new();
        for (id, name) in [("01aaaaaa", "web"), ("01aaaaab", "db"), ("02zzzzzz", "mail")] {
            registry.insert(thing(id, name)).unwrap();
        }
        registry
    }

    #[test]
    fn names_ids_and_prefixes_find_computers() {
        let registry = registry();
        let check = |text: &str, expected: Result<&str, &str>| {
            let found = registry.find(text);
            let found = found.as_ref().map(|entry| entry.name().as_str()).map_err(|error| error.code);
            assert_eq!(found, expected, "{text}");
        };
        check("web", Ok("web"));
        check("cmp_02zzzz", Ok("mail"));
        check("cmp_01aaaaab", Ok("db"));
        check("cmp_01aaaaaa000000000000000000", Ok("web"));
        check("cmp_01aaaa", Err("ambiguous_id"));
        check("cmp_01aaa", Err("computer_not_found"));
        check("cmp_03aaaaaa", Err("computer_not_found"));
        check("cmp_zzzzzzzz", Err("computer_not_found"));
        check("cmp_", Err("computer_not_found"));
        check("", Err("computer_not_found"));
        check("nobody", Err("computer_not_found"));
        check("cmp_01aaaaaa0000000000000000000000", Err("computer_not_found"));
    }

    #[test]
    fn a_name_is_held_by_one() {
        let registry = registry();
        let other = thing("05", "web");
        assert_eq!(registry.insert(Arc::clone(&other)), Err(registry.find("web").unwrap().id()));
        let web = registry.find("web").unwrap();
        registry.free_name(&web);
        assert!(registry.insert(other).is_ok());
        registry.remove(&web); // Removes the old one, not the name's new holder.
        assert_eq!(registry.find("web").unwrap().id().to_string(), "cmp_05000000000000000000000000");
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended() {
        let registry = registry();
        let (page, more) = registry.page(None, 2, |_| true);
        assert_eq!((page.len(), more), (2, true));
        let (page, more) = registry.page(Some(page[1].id()), 2, |_| true);
        assert_eq!((page[0].name().as_str(), more), ("mail", false));
        let (page, more) = registry.page(None, 1, |entry| entry.name().as_str() == "db");
        assert_eq!((page.len(), more), (1, false));
    }
}
