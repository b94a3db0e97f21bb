//! One kind of object: what is wanted of it, and where the kernel holds something else.

use std::collections::{BTreeMap, BTreeSet};

/// Objects of one kind, by name.
#[derive(Debug, Clone)]
pub(super) struct Table<K, V> {
    wanted: BTreeMap<K, Wanted<V>>,
    /// What the kernel holds, where that is not what is wanted. Of all other names it holds what is wanted.
    different: BTreeMap<K, Option<V>>,
    /// What was heard of since the last reading began.
    heard: Option<BTreeSet<K>>,
}

#[derive(Debug, Clone)]
struct Wanted<V> {
    value: V,
    /// How often it is wanted: two leases of one host share what leads to it.
    times: u32,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { wanted: BTreeMap::new(), different: BTreeMap::new(), heard: None }
    }
}

impl<K: Ord + Copy, V: PartialEq + Clone> Table<K, V> {
    pub(super) fn want(&mut self, more: impl IntoIterator<Item = (K, V)>) {
        for (key, value) in more {
            let held = self.held(&key).cloned();
            let times = self.wanted.get(&key).map_or(0, |wanted| wanted.times);
            self.wanted.insert(key, Wanted { value, times: times + 1 });
            self.set_held(key, held);
        }
    }

    pub(super) fn give_up<'a>(&mut self, less: impl IntoIterator<Item = &'a K>)
    where
        K: 'a,
    {
        for &key in less {
            let Some(wanted) = self.wanted.get_mut(&key) else { continue };
            wanted.times -= 1;
            if wanted.times == 0 {
                let held = self.held(&key).cloned();
                self.wanted.remove(&key);
                self.set_held(key, held);
            }
        }
    }

    pub(super) fn give_up_all(&mut self) {
        for (key, wanted) in std::mem::take(&mut self.wanted) {
            self.different.entry(key).or_insert(Some(wanted.value));
        }
        self.different.retain(|_, held| held.is_some());
    }

    /// Notes what the kernel holds. Answers whether that is news.
    pub(super) fn observe(&mut self, key: K, held: Option<V>) -> bool {
        if let Some(heard) = &mut self.heard {
            heard.insert(key);
        }
        let news = self.held(&key) != held.as_ref();
        if news {
            self.set_held(key, held);
        }
        news
    }

    /// Notes that the kernel no longer holds what `goes`.
    pub(super) fn lose(&mut self, goes: impl Fn(&K, &V) -> bool) {
        let lost: Vec<K> =
            self.all_held().filter(|(key, value)| goes(key, value)).map(|(key, _)| *key).collect();
        for key in lost {
            self.observe(key, None);
        }
    }

    pub(super) fn begin_reading(&mut self) {
        self.heard = Some(BTreeSet::new());
    }

    /// Notes all that the kernel holds, but for what was heard of since the reading began. Answers what is news.
    pub(super) fn reset(&mut self, read: BTreeMap<K, V>) -> Vec<K> {
        let heard = self.heard.take().unwrap_or_default();
        let mut news: Vec<(K, Option<V>)> = self
            .all_held()
            .filter(|(key, _)| !read.contains_key(key) && !heard.contains(key))
            .map(|(key, _)| (*key, None))
            .collect();
        news.extend(
            read.into_iter()
                .filter(|(key, value)| !heard.contains(key) && self.held(key) != Some(value))
                .map(|(key, value)| (key, Some(value))),
        );
        news.into_iter()
            .map(|(key, held)| {
                self.set_held(key, held);
                key
            })
            .collect()
    }

    /// What the kernel holds under a name.
    pub(super) fn held(&self, key: &K) -> Option<&V> {
        match self.different.get(key) {
            Some(held) => held.as_ref(),
            None => self.wanted.get(key).map(|wanted| &wanted.value),
        }
    }

    /// What is wanted and what is held: of all names, or of those where the two differ.
    pub(super) fn sides(&self, whole: bool) -> (BTreeMap<K, V>, BTreeMap<K, V>) {
        if whole {
            let wanted = self.wanted.iter().map(|(key, wanted)| (*key, wanted.value.clone())).collect();
            return (wanted, self.all_held().map(|(key, value)| (*key, value.clone())).collect());
        }
        let names = || self.different.keys();
        let wanted = |key: &K| Some((*key, self.wanted.get(key)?.value.clone()));
        let held = |key: &K| Some((*key, self.held(key)?.clone()));
        (names().filter_map(wanted).collect(), names().filter_map(held).collect())
    }

    pub(super) fn differs(&self, key: &K) -> bool {
        self.different.contains_key(key)
    }

    pub(super) fn is_in_line(&self) -> bool {
        self.different.is_empty()
    }

    pub(super) fn wanted(&self) -> impl Iterator<Item = K> {
        self.wanted.keys().copied()
    }

    fn all_held(&self) -> impl Iterator<Item = (&K, &V)> {
        let as_wanted = self
            .wanted
            .iter()
            .filter(|(key, _)| !self.different.contains_key(key))
            .map(|(key, wanted)| (key, &wanted.value));
        as_wanted.chain(self.different.iter().filter_map(|(key, held)| Some((key, held.as_ref()?))))
    }

    fn set_held(&mut self, key: K, held: Option<V>) {
        if self.wanted.get(&key).map(|wanted| &wanted.value) == held.as_ref() {
            self.different.remove(&key);
        } else {
            self.different.insert(key, held);
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

    fn sides(table: &Table<u8, &'static str>) -> (Vec<(u8, &'static str)>, Vec<(u8, &'static str)>) {
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
