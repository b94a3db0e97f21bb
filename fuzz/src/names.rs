//! Whatever a container asks, and whatever somebody wrote about a container: an answer of DNS or none, that fits, and that
//! tells nothing of a network in which the asking container is not.

use flan_names::fuzz::{MOST_BY_UDP, answer};
use flan_subnet_lease::{Container, Entry, Stored};

/// The container of the other network, by name and by address.
const SECRET: &str = "xyzzy-of-red";
const SECRET_ADDRESS: [u8; 4] = [10, 9, 200, 201];

/// The first byte says whether the question comes by TCP, the next two how many bytes describe a container, and the rest is
/// the question.
pub fn check(bytes: &[u8]) {
    let [flags, low, high, rest @ ..] = bytes else { return };
    let described = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (value, question) = rest.split_at(described);
    let by_tcp = flags & 1 != 0;
    let red = container("red", &format!(r#"{{"Name":"{SECRET}","NodeID":"h2","Addresses":["10.9.200.201"]}}"#).into_bytes())
        .expect("a container of red");
    let Some(said) = answer(container("blue", value), [red], question, by_tcp) else { return };
    let limit = if by_tcp { usize::from(u16::MAX) } else { usize::from(MOST_BY_UDP) };
    assert!(said.len() <= limit, "{} bytes", said.len());
    assert!(said.len() >= 12, "no header");
    assert_eq!(said[..2], question[..2], "another question's number");
    assert!(said[2] & 0x80 != 0, "a question as the answer");
    let has = |text: &[u8], part: &[u8]| text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part));
    for part in [SECRET.as_bytes(), &SECRET_ADDRESS] {
        assert!(!has(&said, part) || has(question, part) || has(value, part), "it tells of red");
    }
}

fn container(endpoint: &str, value: &[u8]) -> Option<Container> {
    let entry = Entry {
        key: endpoint.to_owned(),
        value: value.to_vec(),
        create_revision: 1,
        mod_revision: 1,
        etcd_lease: None,
    };
    Container::read(&entry).ok()
}
