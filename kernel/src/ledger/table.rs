//! One kind of object: what is wanted, and where the kernel holds something else.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use crate::kind::Kind;

/// Objects of one kind, by name. Tens of thousands change in one round, so lookups are few, and hashed where order does
/// not matter: a tree of that size does not fit into the processor's cache.
#[derive(Debug, Clone)]
pub(super) struct Table<K: Kind> {
    wanted: HashMap<K::Key, Wanted<K::Value>>,
    /// All wishes, oldest first, for names with several.
    wishes: HashMap<K::Key, Vec<K::Value>>,
    /// What the kernel holds where that differs from what is wanted. For all other names it holds what is wanted.
    different: HashMap<K::Key, Option<K::Value>>,
    /// Names observed since the last reading began.
    heard: Option<HashSet<K::Key>>,
    /// Names that are held, were wanted and are not wanted any more.
    given_up: HashSet<K::Key>,
}

#[derive(Debug, Clone)]
struct Wanted<V> {
    /// The merged wishes.
    value: V,
    /// Whether there are several wishes, in `wishes`.
    is_shared: bool,
    /// Whether `different` has an entry.
    differs: bool,
}

impl<K: Kind> Default for Table<K> {
    fn default() -> Self {
        let (wanted, wishes, different) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { wanted, wishes, different, heard: None, given_up: HashSet::new() }
    }
}

impl<K: Kind> Table<K> {
    /// Adds a wish. Several wishes must be given up one by one.
    pub(super) fn want(&mut self, key: K::Key, value: K::Value) {
        match self.wanted.entry(key) {
            Entry::Vacant(place) => {
                self.given_up.remove(&key);
                let differs =
                    note(&mut self.different, key, |held| is_as_wanted::<K>(held, Some(&value)), None);
                place.insert(Wanted { value, is_shared: false, differs });
            }
            Entry::Occupied(mut standing) => {
                let standing = standing.get_mut();
                let wishes = self.wishes.entry(key).or_insert_with(|| vec![standing.value.clone()]);
                wishes.push(value);
                standing.is_shared = true;
                let merged = K::merge(wishes);
                change::<K>(&mut self.different, key, standing, merged);
            }
        }
    }

    pub(super) fn give_up(&mut self, key: K::Key, value: &K::Value) {
        let Entry::Occupied(mut standing) = self.wanted.entry(key) else { return };
        if let Some(wishes) = self.wishes.get_mut(&key).filter(|_| standing.get().is_shared) {
            // Ignore a wish that was never made.
            let Some(place) = wishes.iter().position(|wish| wish == value) else { return };
            wishes.remove(place);
            let (merged, is_shared) = (K::merge(wishes), wishes.len() > 1);
            if !is_shared {
                self.wishes.remove(&key);
            }
            standing.get_mut().is_shared = is_shared;
            return change::<K>(&mut self.different, key, standing.get_mut(), merged);
        }
        let Wanted { value, differs, .. } = standing.remove();
        if note(&mut self.different, key, |held| held.is_none(), (!differs).then_some(value)) {
            self.given_up.insert(key);
        }
    }

    pub(super) fn give_up_all(&mut self) {
        self.wishes.clear();
        for (key, Wanted { value, differs, .. }) in std::mem::take(&mut self.wanted) {
            if note(&mut self.different, key, |held| held.is_none(), (!differs).then_some(value)) {
                self.given_up.insert(key);
            }
        }
    }

    /// Returns whether it is held, was wanted, and is not wanted any more.
    pub(super) fn is_given_up(&self, key: &K::Key) -> bool {
        self.given_up.contains(key)
    }

    /// Records what the kernel holds. Returns whether that is news.
    pub(super) fn observe(&mut self, key: K::Key, held: Option<K::Value>) -> bool {
        if let Some(heard) = &mut self.heard {
            heard.insert(key);
        }
        self.set_held(key, held)
    }

    /// Records that the kernel no longer holds what `goes` matches. Returns the removed keys.
    pub(super) fn lose(&mut self, goes: impl Fn(&K::Key, &K::Value) -> bool) -> Vec<K::Key> {
        let lost: Vec<K::Key> =
            self.all_held().filter(|(key, value)| goes(key, value)).map(|(key, _)| *key).collect();
        for key in &lost {
            self.observe(*key, None);
        }
        lost
    }

    pub(super) fn begin_reading(&mut self) {
        self.heard = Some(HashSet::new());
    }

    /// Records all that the kernel holds, except for names observed since the reading began. Returns what is news.
    pub(super) fn reset(&mut self, read: BTreeMap<K::Key, K::Value>) -> Vec<K::Key> {
        let heard = self.heard.take().unwrap_or_default();
        let gone: Vec<K::Key> = self
            .all_held()
            .filter(|(key, _)| !read.contains_key(key) && !heard.contains(key))
            .map(|(key, _)| *key)
            .collect();
        let mut news: Vec<K::Key> = gone.into_iter().filter(|key| self.set_held(*key, None)).collect();
        for (key, value) in read {
            if !heard.contains(&key) && self.set_held(key, Some(value)) {
                news.push(key);
            }
        }
        news
    }

    pub(super) fn compact(&mut self) {
        self.wanted.shrink_to_fit();
        self.wishes.shrink_to_fit();
        self.different.shrink_to_fit();
        self.given_up.shrink_to_fit();
    }

    pub(super) fn held(&self, key: &K::Key) -> Option<&K::Value> {
        match self.wanted.get(key) {
            Some(wanted) if !wanted.differs => Some(&wanted.value),
            _ => self.different.get(key)?.as_ref(),
        }
    }

    /// Returns what is wanted and what is held, for all names or only for those that differ.
    pub(super) fn sides(&self, whole: bool) -> (Objects<K>, Objects<K>) {
        if whole {
            let wanted = self.wanted.iter().map(|(key, wanted)| (*key, wanted.value.clone())).collect();
            return (wanted, self.all_held().map(|(key, value)| (*key, value.clone())).collect());
        }
        let wanted = |key: &K::Key| Some((*key, self.wanted.get(key)?.value.clone()));
        let held = |(key, held): (&K::Key, &Option<K::Value>)| Some((*key, held.clone()?));
        (self.different.keys().filter_map(wanted).collect(), self.different.iter().filter_map(held).collect())
    }

    pub(super) fn differs(&self, key: &K::Key) -> bool {
        self.different.contains_key(key)
    }

    /// Returns whether it differs because another program changed it.
    pub(super) fn is_disturbed(&self, key: &K::Key) -> bool {
        let Some(held) = self.different.get(key) else { return false };
        let wanted = self.wanted.get(key).map(|wanted| &wanted.value);
        !held.as_ref().zip(wanted).is_some_and(|(held, wanted)| K::changes_by_itself(held, wanted))
    }

    /// Returns whether something is held that is not wanted, or not so.
    pub(super) fn holds_what_differs(&self) -> bool {
        self.different.values().any(Option::is_some)
    }

    fn all_held(&self) -> impl Iterator<Item = (&K::Key, &K::Value)> {
        let as_wanted = self.wanted.iter().filter(|(_, wanted)| !wanted.differs);
        let different = self.different.iter().filter_map(|(key, held)| Some((key, held.as_ref()?)));
        as_wanted.map(|(key, wanted)| (key, &wanted.value)).chain(different)
    }

    /// Returns whether something else was held before.
    fn set_held(&mut self, key: K::Key, held: Option<K::Value>) -> bool {
        match self.wanted.get_mut(&key) {
            Some(wanted) => {
                let is_wanted = is_as_wanted::<K>(held.as_ref(), Some(&wanted.value));
                let news = match wanted.differs {
                    true => is_wanted || self.different.get(&key).is_none_or(|before| *before != held),
                    false => !is_wanted,
                };
                if news {
                    wanted.differs = !is_wanted;
                    match is_wanted {
                        true => drop(self.different.remove(&key)),
                        false => drop(self.different.insert(key, held)),
                    }
                }
                news
            }
            None => match held {
                None => {
                    self.given_up.remove(&key);
                    self.different.remove(&key).is_some()
                }
                held => self.different.insert(key, held.clone()) != Some(held),
            },
        }
    }
}

/// Ordered objects of one kind.
type Objects<K> = BTreeMap<<K as Kind>::Key, <K as Kind>::Value>;

/// Returns whether what is held counts as what is wanted.
fn is_as_wanted<K: Kind>(held: Option<&K::Value>, wanted: Option<&K::Value>) -> bool {
    match (held, wanted) {
        (Some(held), Some(wanted)) => K::is_as_wanted(held, wanted),
        (held, wanted) => held.is_none() && wanted.is_none(),
    }
}

/// Changes what is wanted under a name that was wanted before.
fn change<K: Kind>(
    different: &mut HashMap<K::Key, Option<K::Value>>,
    key: K::Key,
    standing: &mut Wanted<K::Value>,
    value: K::Value,
) {
    let before = std::mem::replace(&mut standing.value, value);
    let held = (!standing.differs).then_some(before);
    let value = &standing.value;
    standing.differs = note(different, key, |held| is_as_wanted::<K>(held, Some(value)), held);
}

/// Updates `different` for `key` after a change of what is wanted. What is held is the entry in `different`, or else
/// `held`. Returns whether that differs from what is wanted.
fn note<K: Eq + Hash, V>(
    different: &mut HashMap<K, Option<V>>,
    key: K,
    is_wanted: impl FnOnce(Option<&V>) -> bool,
    held: Option<V>,
) -> bool {
    match different.entry(key) {
        Entry::Occupied(known) => {
            let differs = !is_wanted(known.get().as_ref());
            if !differs {
                known.remove();
            }
            differs
        }
        Entry::Vacant(place) => {
            let differs = !is_wanted(held.as_ref());
            if differs {
                place.insert(held);
            }
            differs
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;
    use crate::kind::Name;

    /// Letters under numbers. Several wishes for one number are concatenated.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Letters {}

    impl Kind for Letters {
        type Key = u8;
        type Value = String;

        const NAME: Name = Name { short: "letter", one: "letter", many: "letters" };

        fn show(key: &u8, value: &String, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{key} {value}")
        }

        fn is_as_wanted(held: &String, wanted: &String) -> bool {
            held.eq_ignore_ascii_case(wanted)
        }

        fn merge(wishes: &[String]) -> String {
            wishes.concat()
        }
    }

    fn table() -> Table<Letters> {
        let mut table = Table::default();
        table.want(1, "a".to_owned());
        table.want(2, "b".to_owned());
        table
    }

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    fn sides(table: &Table<Letters>) -> (Vec<String>, Vec<String>) {
        let (wanted, held) = table.sides(false);
        let shown =
            |side: Objects<Letters>| side.into_iter().map(|(key, value)| format!("{key} {value}")).collect();
        (shown(wanted), shown(held))
    }

    #[test]
    fn what_is_wanted_and_not_held_differs_until_it_is_held() {
        let mut table = table();
        assert_eq!(sides(&table), (vec!["1 a".to_owned(), "2 b".to_owned()], vec![]));
        assert!(table.observe(1, text("a")) && table.observe(2, text("b")));
        assert!(table.different.is_empty());
        assert!(!table.observe(2, text("b")), "an echo is no news");
    }

    #[test]
    fn what_is_no_longer_wanted_differs_until_it_is_gone() {
        let mut table = table();
        table.observe(1, text("a"));
        table.give_up(1, &"a".to_owned());
        table.give_up(2, &"b".to_owned());
        assert_eq!(sides(&table), (vec![], vec!["1 a".to_owned()]));
        table.observe(1, None);
        assert!(table.different.is_empty());
    }

    #[test]
    fn what_was_wanted_is_known_until_it_is_gone_or_wanted_again() {
        let mut table = table();
        for key in 1..=3 {
            table.observe(key, text("a"));
        }
        table.give_up(1, &"a".to_owned());
        let given_up = |table: &Table<Letters>| [1, 2, 3].map(|key| table.is_given_up(&key));
        assert_eq!(given_up(&table), [true, false, false], "3 was never wanted");
        table.observe(1, None);
        table.give_up_all();
        assert_eq!(given_up(&table), [false, true, false]);
        table.want(2, "b".to_owned());
        assert_eq!(given_up(&table), [false; 3]);
    }

    #[test]
    fn what_is_wanted_twice_is_what_comes_of_both_until_one_is_given_up() {
        let mut table = table();
        table.observe(1, text("a"));
        table.observe(2, text("b"));
        table.want(1, "x".to_owned());
        assert_eq!(sides(&table), (vec!["1 ax".to_owned()], vec!["1 a".to_owned()]));
        table.observe(1, text("ax"));
        table.give_up(1, &"a".to_owned());
        assert_eq!(sides(&table), (vec!["1 x".to_owned()], vec!["1 ax".to_owned()]));
        table.give_up(1, &"never wanted, and yet the last".to_owned());
        assert_eq!(sides(&table), (vec![], vec!["1 ax".to_owned()]));
    }

    #[test]
    fn what_is_held_may_count_as_what_is_wanted_without_being_the_same() {
        let mut table = table();
        table.observe(1, text("A"));
        table.observe(2, text("B"));
        assert!(table.different.is_empty());
        table.observe(2, text("c"));
        assert!(!table.different.is_empty());
    }

    #[test]
    fn a_reading_does_not_undo_what_was_heard_since_it_began() {
        let mut table = table();
        table.observe(1, text("a"));
        table.begin_reading();
        table.observe(2, text("b"));
        assert_eq!(table.reset([(1, "x".to_owned())].into()), [1], "2 came after it was read");
        assert_eq!(sides(&table), (vec!["1 a".to_owned()], vec!["1 x".to_owned()]));
        table.begin_reading();
        assert_eq!(table.reset([(3, "c".to_owned())].into()), [2, 1, 3]);
        assert_eq!(sides(&table), (vec!["1 a".to_owned(), "2 b".to_owned()], vec!["3 c".to_owned()]));
    }

    #[test]
    fn all_that_was_wanted_may_be_given_up_at_once() {
        let mut table = table();
        table.observe(1, text("a"));
        table.give_up_all();
        assert_eq!(sides(&table), (vec![], vec!["1 a".to_owned()]));
    }
}
