//! One kind of object: what is wanted of it, and where the kernel holds something else.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

/// Objects of one kind, by name. Tens of thousands of them change in one round, so that each is looked for as seldom as
/// can be, and where nobody asks for an order, by its hash: a tree of that size does not fit into the processor's cache.
#[derive(Debug, Clone)]
pub(super) struct Table<K, V> {
    wanted: HashMap<K, Wanted<V>>,
    /// What the kernel holds, where that is not what is wanted. Of all other names it holds what is wanted.
    different: HashMap<K, Option<V>>,
    /// What was heard of since the last reading began.
    heard: Option<HashSet<K>>,
}

#[derive(Debug, Clone)]
struct Wanted<V> {
    value: V,
    /// How often it is wanted: two leases of one host share what leads to it.
    times: u16,
    /// Whether `different` knows of it.
    differs: bool,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { wanted: HashMap::new(), different: HashMap::new(), heard: None }
    }
}

impl<K: Ord + Hash + Copy, V: PartialEq + Clone> Table<K, V> {
    pub(super) fn want(&mut self, more: impl IntoIterator<Item = (K, V)>) {
        for (key, value) in more {
            match self.wanted.entry(key) {
                Entry::Vacant(place) => {
                    let differs = note(&mut self.different, key, |held| held == Some(&value), None);
                    place.insert(Wanted { value, times: 1, differs });
                }
                Entry::Occupied(mut standing) => {
                    let standing = standing.get_mut();
                    let before = std::mem::replace(&mut standing.value, value);
                    standing.times = standing.times.saturating_add(1);
                    let held = (!standing.differs).then_some(before);
                    let value = &standing.value;
                    standing.differs = note(&mut self.different, key, |held| held == Some(value), held);
                }
            }
        }
    }

    pub(super) fn give_up<'a>(&mut self, less: impl IntoIterator<Item = &'a K>)
    where
        K: 'a,
    {
        for &key in less {
            let Entry::Occupied(mut standing) = self.wanted.entry(key) else { continue };
            standing.get_mut().times -= 1;
            if standing.get().times == 0 {
                let Wanted { value, differs, .. } = standing.remove();
                note(&mut self.different, key, |held| held.is_none(), (!differs).then_some(value));
            }
        }
    }

    pub(super) fn give_up_all(&mut self) {
        for (key, Wanted { value, differs, .. }) in std::mem::take(&mut self.wanted) {
            note(&mut self.different, key, |held| held.is_none(), (!differs).then_some(value));
        }
    }

    /// Notes what the kernel holds. Answers whether that is news.
    pub(super) fn observe(&mut self, key: K, held: Option<V>) -> bool {
        if let Some(heard) = &mut self.heard {
            heard.insert(key);
        }
        self.set_held(key, held)
    }

    /// Notes that the kernel no longer holds what `goes`. Answers what that was.
    pub(super) fn lose(&mut self, goes: impl Fn(&K, &V) -> bool) -> Vec<K> {
        let lost: Vec<K> =
            self.all_held().filter(|(key, value)| goes(key, value)).map(|(key, _)| *key).collect();
        for key in &lost {
            self.observe(*key, None);
        }
        lost
    }

    pub(super) fn begin_reading(&mut self) {
        self.heard = Some(HashSet::new());
    }

    /// Notes all that the kernel holds, but for what was heard of since the reading began. Answers what is news.
    pub(super) fn reset(&mut self, read: BTreeMap<K, V>) -> Vec<K> {
        let heard = self.heard.take().unwrap_or_default();
        let gone: Vec<K> = self
            .all_held()
            .filter(|(key, _)| !read.contains_key(key) && !heard.contains(key))
            .map(|(key, _)| *key)
            .collect();
        let mut news: Vec<K> = gone.into_iter().filter(|key| self.set_held(*key, None)).collect();
        for (key, value) in read {
            if !heard.contains(&key) && self.set_held(key, Some(value)) {
                news.push(key);
            }
        }
        news
    }

    /// Gives back the room of what is gone.
    pub(super) fn compact(&mut self) {
        self.wanted.shrink_to_fit();
        self.different.shrink_to_fit();
    }

    /// What the kernel holds under a name.
    pub(super) fn held(&self, key: &K) -> Option<&V> {
        match self.wanted.get(key) {
            Some(wanted) if !wanted.differs => Some(&wanted.value),
            _ => self.different.get(key)?.as_ref(),
        }
    }

    /// What is wanted and what is held: of all names, or of those where the two differ.
    pub(super) fn sides(&self, whole: bool) -> (BTreeMap<K, V>, BTreeMap<K, V>) {
        if whole {
            let wanted = self.wanted.iter().map(|(key, wanted)| (*key, wanted.value.clone())).collect();
            return (wanted, self.all_held().map(|(key, value)| (*key, value.clone())).collect());
        }
        let wanted = |key: &K| Some((*key, self.wanted.get(key)?.value.clone()));
        let held = |(key, held): (&K, &Option<V>)| Some((*key, held.clone()?));
        (self.different.keys().filter_map(wanted).collect(), self.different.iter().filter_map(held).collect())
    }

    pub(super) fn differs(&self, key: &K) -> bool {
        self.different.contains_key(key)
    }

    pub(super) fn is_in_line(&self) -> bool {
        self.different.is_empty()
    }

    /// Whether something is held where something else is wanted, or nothing.
    pub(super) fn holds_what_differs(&self) -> bool {
        self.different.values().any(Option::is_some)
    }

    fn all_held(&self) -> impl Iterator<Item = (&K, &V)> {
        let as_wanted = self.wanted.iter().filter(|(_, wanted)| !wanted.differs);
        let different = self.different.iter().filter_map(|(key, held)| Some((key, held.as_ref()?)));
        as_wanted.map(|(key, wanted)| (key, &wanted.value)).chain(different)
    }

    /// Answers whether something else was held before.
    fn set_held(&mut self, key: K, held: Option<V>) -> bool {
        match self.wanted.get_mut(&key) {
            Some(wanted) => {
                let is_wanted = held.as_ref() == Some(&wanted.value);
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
                None => self.different.remove(&key).is_some(),
                held => self.different.insert(key, held.clone()) != Some(held),
            },
        }
    }
}

/// Puts what is held of `key` where it belongs, after what is wanted of it has changed: `held`, unless `different` knows
/// better. Answers whether that is different from what is wanted.
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
    use super::*;

    fn table() -> Table<u8, &'static str> {
        let mut table = Table::default();
        table.want([(1, "a"), (2, "b")]);
        table
    }

    type Listed = Vec<(u8, &'static str)>;

    fn sides(table: &Table<u8, &'static str>) -> (Listed, Listed) {
        let (wanted, held) = table.sides(false);
        (wanted.into_iter().collect(), held.into_iter().collect())
    }

    #[test]
    fn what_is_wanted_and_not_held_differs_until_it_is_held() {
        let mut table = table();
        assert_eq!(sides(&table), (vec![(1, "a"), (2, "b")], vec![]));
        assert!(table.observe(1, Some("a")) && table.observe(2, Some("b")));
        assert!(table.is_in_line());
        assert!(!table.observe(2, Some("b")), "an echo is no news");
    }

    #[test]
    fn what_is_no_longer_wanted_differs_until_it_is_gone() {
        let mut table = table();
        table.observe(1, Some("a"));
        table.give_up(&[1, 2]);
        assert_eq!(sides(&table), (vec![], vec![(1, "a")]));
        table.observe(1, None);
        assert!(table.is_in_line());
    }

    #[test]
    fn what_is_wanted_twice_is_wanted_until_it_is_given_up_twice() {
        let mut table = table();
        table.observe(1, Some("a"));
        table.observe(2, Some("b"));
        table.want([(1, "a")]);
        table.give_up(&[1]);
        assert!(table.is_in_line());
        table.give_up(&[1]);
        assert_eq!(sides(&table), (vec![], vec![(1, "a")]));
    }

    #[test]
    fn a_reading_does_not_undo_what_was_heard_since_it_began() {
        let mut table = table();
        table.observe(1, Some("a"));
        table.begin_reading();
        table.observe(2, Some("b"));
        assert_eq!(table.reset([(1, "x")].into()), [1], "2 came after it was read");
        assert_eq!(sides(&table), (vec![(1, "a")], vec![(1, "x")]));
        table.begin_reading();
        assert_eq!(table.reset([(3, "c")].into()), [2, 1, 3]);
        assert_eq!(sides(&table), (vec![(1, "a"), (2, "b")], vec![(3, "c")]));
    }

    #[test]
    fn all_that_was_wanted_may_be_given_up_at_once() {
        let mut table = table();
        table.observe(1, Some("a"));
        table.give_up_all();
        assert_eq!(sides(&table), (vec![], vec![(1, "a")]));
    }
}
