//! Which computers there are: by id, by name, by a prefix of the id.
//!
//! Locks are held for a look or a change of the two maps and never across an await.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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
    /// Those that lie in the trash: they have no name that anybody else could not take.
    trashed: BTreeSet<ComputerId>,
}

impl<E: Entry> Maps<E> {
    /// Those in the trash that were called so, the oldest first.
    fn trashed_as(&self, name: &str) -> Vec<&Arc<E>> {
        let all = self.trashed.iter().filter_map(|id| self.by_id.get(id));
        all.filter(|entry| entry.name().as_str() == name).collect()
    }
}

impl<E: Entry> Registry<E> {
    pub(crate) fn new() -> Self {
        Self { maps: RwLock::new(Maps { by_id: BTreeMap::new(), by_name: HashMap::new(), trashed: BTreeSet::new() }) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps<E>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps<E>> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a computer under its name, or says who has the name. One that lay in the trash no longer does.
    pub(crate) fn insert(&self, entry: Arc<E>) -> Result<(), ComputerId> {
        let mut maps = self.write();
        if let Some(&holder) = maps.by_name.get(entry.name().as_str()).filter(|&&holder| holder != entry.id()) {
            return Err(holder);
        }
        maps.by_name.insert(entry.name().as_str().to_owned(), entry.id());
        maps.trashed.remove(&entry.id());
        maps.by_id.insert(entry.id(), entry);
        Ok(())
    }

    /// Adds a computer that lies in the trash, or has it lie there from now on: others may take its name.
    pub(crate) fn trash(&self, entry: Arc<E>) {
        self.free_name(&*entry);
        let mut maps = self.write();
        maps.trashed.insert(entry.id());
        maps.by_id.insert(entry.id(), entry);
    }

    /// Those in the trash, the first that was made first.
    pub(crate) fn trashed(&self) -> Vec<Arc<E>> {
        let maps = self.read();
        maps.trashed.iter().filter_map(|id| maps.by_id.get(id)).cloned().collect()
    }

    /// Keeps a name for a computer that is to come back under it, or says who has the name.
    pub(crate) fn claim(&self, name: &ComputerName, id: ComputerId) -> Result<(), ComputerId> {
        let mut maps = self.write();
        match maps.by_name.get(name.as_str()) {
            Some(&holder) => Err(holder),
            None => {
                maps.by_name.insert(name.as_str().to_owned(), id);
                Ok(())
            }
        }
    }

    /// Gives back a name that was claimed.
    pub(crate) fn unclaim(&self, name: &ComputerName, id: ComputerId) {
        let mut maps = self.write();
        if maps.by_name.get(name.as_str()) == Some(&id) {
            maps.by_name.remove(name.as_str());
        }
    }

    /// Who has the name.
    pub(crate) fn holder(&self, name: &ComputerName) -> Option<ComputerId> {
        self.read().by_name.get(name.as_str()).copied()
    }

    /// Lets others take the name.
    pub(crate) fn free_name(&self, entry: &E) {
        self.unclaim(entry.name(), entry.id());
    }

    /// Forgets a computer.
    pub(crate) fn remove(&self, entry: &E) {
        self.free_name(entry);
        let mut maps = self.write();
        maps.by_id.remove(&entry.id());
        maps.trashed.remove(&entry.id());
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

    /// The computer that `text` names: a name, an id, or the beginning of one. None in the trash.
    ///
    /// Errors: `computer_not_found`; `ambiguous_id`; `computer_trashed`.
    pub(crate) fn find(&self, text: &str) -> Result<Arc<E>, Error> {
        let maps = self.read();
        if let Some(entry) = named(&maps, text)? {
            return match maps.trashed.contains(&entry.id()) {
                true => Err(Error::trashed(entry.name())),
                false => Ok(entry),
            };
        }
        Err(match maps.trashed_as(text).last() {
            Some(entry) => Error::trashed(entry.name()),
            None => Error::computer_not_found(text),
        })
    }

    /// All that `text` means or meant: a name, of one that is there and of those in the trash; an id, or the
    /// beginning of one.
    ///
    /// Errors: `ambiguous_id`.
    pub(crate) fn called(&self, text: &str) -> Result<Vec<ComputerId>, Error> {
        let maps = self.read();
        let mut ids: Vec<_> = named(&maps, text)?.iter().map(|entry| entry.id()).collect();
        ids.extend(maps.trashed_as(text).iter().map(|entry| entry.id()));
        ids.dedup();
        Ok(ids)
    }

    /// As [`Registry::find`], and where nobody has the name now, one in the trash that had it: for what only reads.
    ///
    /// Errors: `computer_not_found`; `ambiguous_id`; `ambiguous_name` where the trash has several.
    pub(crate) fn find_any(&self, text: &str) -> Result<Arc<E>, Error> {
        let maps = self.read();
        if let Some(entry) = named(&maps, text)? {
            return Ok(entry);
        }
        match maps.trashed_as(text)[..] {
            [] => Err(Error::computer_not_found(text)),
            [entry] => Ok(Arc::clone(entry)),
            [.., last] => Err(Error::new("ambiguous_name", 409, format!("several in the trash were called `{text}`"))
                .hint(format!("give an id: that of the newest is {}, and `den trash` lists all", last.id()))),
        }
    }
}

/// Whom a name, an id or the beginning of one means; none where nobody has it.
fn named<E: Entry>(maps: &Maps<E>, text: &str) -> Result<Option<Arc<E>>, Error> {
    if let Some(entry) = maps.by_name.get(text).and_then(|id| maps.by_id.get(id)) {
        return Ok(Some(Arc::clone(entry)));
    }
    let Some(digits) = text.strip_prefix("cmp_") else { return Ok(None) };
    if digits.len() < PREFIX_LENGTH_MIN || digits.len() > 26 {
        return Ok(None);
    }
    // Ids sort as their texts do, so those with one beginning lie together.
    let Ok(first) = format!("cmp_{digits:0<26}").parse::<ComputerId>() else { return Ok(None) };
    let mut from = maps.by_id.range(first..).take_while(|(id, _)| id.to_string().starts_with(text));
    match (from.next(), from.next()) {
        (Some((_, entry)), None) => Ok(Some(Arc::clone(entry))),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(Error::new("ambiguous_id", 400, format!("`{text}` is the beginning of several ids"))
            .hint("give more of it, or the name")),
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
    fn what_lies_in_the_trash_is_found_by_who_only_reads() {
        let registry = registry();
        let codes = |text: &str| {
            let code = |found: Result<Arc<Thing>, Error>| found.map(|entry| entry.id()).map_err(|error| error.code);
            (code(registry.find(text)), code(registry.find_any(text)))
        };
        let web = registry.find("web").unwrap();
        registry.trash(Arc::clone(&web));
        for text in ["web", "cmp_01aaaaaa"] {
            assert_eq!(codes(text), (Err("computer_trashed"), Ok(web.id())), "{text}");
        }
        // Another one of that name is meant by it; with two in the trash only ids are clear.
        let other = thing("05", "web");
        registry.insert(Arc::clone(&other)).unwrap();
        assert_eq!(codes("web"), (Ok(other.id()), Ok(other.id())));
        assert_eq!(registry.claim(web.name(), web.id()), Err(other.id()));
        registry.trash(Arc::clone(&other));
        assert_eq!(codes("web"), (Err("computer_trashed"), Err("ambiguous_name")));
        assert_eq!(registry.trashed().iter().map(|entry| entry.id()).collect::<Vec<_>>(), [web.id(), other.id()]);
        // Back under its name, which nobody else may have meanwhile.
        registry.claim(web.name(), web.id()).unwrap();
        assert_eq!(registry.insert(thing("06", "web")), Err(web.id()));
        registry.insert(Arc::clone(&web)).unwrap();
        assert_eq!(codes("web"), (Ok(web.id()), Ok(web.id())));
        registry.remove(&web);
        assert_eq!(codes("web"), (Err("computer_trashed"), Ok(other.id())));
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
