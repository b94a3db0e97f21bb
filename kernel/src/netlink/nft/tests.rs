use super::*;

#[test]
fn a_set_is_known_by_its_name() {
    for set in Set::all() {
        assert_eq!(SetKind::named(set.kind.name().as_bytes()), Some(set.kind));
    }
}
