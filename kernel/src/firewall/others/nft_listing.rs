//! Reads the output of `nft -j list ruleset` (`libnftables-json(5)`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::chains::{
    Addresses, Base, Chain, Hook, Owner, Pattern, Rule, Table, Test, Verdict, What, addresses,
};

/// Parses the tables for routed packets, `ip`, `ip6` and `inet`, in their order.
///
/// # Errors
/// If it is not JSON of that form.
pub(super) fn parse(listing: &str) -> Result<Vec<Table>, serde_json::Error> {
    let objects = objects(listing)?;
    // Sets may be listed after the rules that name them.
    let sets: Sets<'_> = objects
        .iter()
        .filter_map(|object| object.get("set").or_else(|| object.get("map")))
        .filter_map(|set| Some(((home(set)?, text(set, "name")?), set.get("elem")?)))
        .collect();
    let mut tables: BTreeMap<Home<'_>, Table> = BTreeMap::new();
    for object in &objects {
        if let Some(chain) = object.get("chain") {
            add_chain(&mut tables, chain);
        } else if let Some(rule) = object.get("rule") {
            add_rule(&mut tables, rule, &sets);
        }
    }
    Ok(tables.into_values().collect())
}

/// Returns the family and name of each such table that has sets or maps.
///
/// # Errors
/// If it is not JSON of that form.
pub(super) fn tables_with_sets(listing: &str) -> Result<BTreeSet<(String, String)>, serde_json::Error> {
    let objects = objects(listing)?;
    let sets = objects.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
    Ok(sets.filter_map(home).map(|(family, table)| (family.to_owned(), table.to_owned())).collect())
}

fn objects(listing: &str) -> Result<Vec<Value>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Listing {
        nftables: Vec<Value>,
    }
    serde_json::from_str::<Listing>(listing).map(|listing| listing.nftables)
}

/// The family and name of a table.
type Home<'a> = (&'a str, &'a str);
/// The elements of a set or map by its table and name.
type Sets<'a> = BTreeMap<(Home<'a>, &'a str), &'a Value>;

fn home(object: &Value) -> Option<Home<'_>> {
    let family = text(object, "family").filter(|family| matches!(*family, "ip" | "ip6" | "inet"))?;
    Some((family, text(object, "table")?))
}

fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get(field)?.as_str()
}

fn chain<'t, 'a>(tables: &'t mut BTreeMap<Home<'a>, Table>, home: Home<'a>, name: &str) -> &'t mut Chain {
    let owner = || Owner::Nft { family: home.0.to_owned(), table: home.1.to_owned() };
    let table = tables.entry(home).or_insert_with(|| Table { owner: owner(), chains: BTreeMap::new() });
    table.chains.entry(name.to_owned()).or_default()
}

fn add_chain<'a>(tables: &mut BTreeMap<Home<'a>, Table>, object: &'a Value) {
    let (Some(home), Some(name)) = (home(object), text(object, "name")) else { return };
    let hook = match text(object, "hook") {
        Some("prerouting") => Some(Hook::Prerouting),
        Some("input") => Some(Hook::Input),
        Some("forward") => Some(Hook::Forward),
        Some("postrouting") => Some(Hook::Postrouting),
        _ => None,
    };
    chain(tables, home, name).base = hook.map(|hook| Base {
        hook,
        priority: object.get("prio").and_then(Value::as_i64).unwrap_or_default(),
        drops: text(object, "policy") == Some("drop"),
    });
}

fn add_rule<'a>(tables: &mut BTreeMap<Home<'a>, Table>, object: &'a Value, sets: &Sets<'a>) {
    let (Some(home), Some(name)) = (home(object), text(object, "chain")) else { return };
    let Some(statements) = object.get("expr").and_then(Value::as_array) else { return };
    let values = Values { home, sets };
    let rules = &mut chain(tables, home, name).rules;
    let mut tests = Vec::new();
    for statement in statements {
        let Some((kind, value)) = statement.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "match" => tests.extend(values.of_match(value)),
            "vmap" => {
                for (mut more, verdict) in values.of_map(value) {
                    more.splice(0..0, tests.iter().cloned());
                    rules.push(Rule { tests: more, verdict });
                }
            }
            "xt" if text(value, "type") != Some("target") => {
                if text(value, "name") != Some("comment") {
                    tests.push(Test::new(What::Unknown));
                }
            }
            "limit" | "quota" | "ct count" | "meter" => tests.push(Test::new(What::Unknown)),
            // These add the packet's address to a set, with a statement per element, which may be a rate.
            "set" | "map" if value.get("stmt").is_some() => tests.push(Test::new(What::Unknown)),
            _ => {
                if let Some(verdict) = verdict(kind, value) {
                    rules.push(Rule { tests, verdict });
                    return;
                }
            }
        }
    }
}

/// Returns what a statement decides; `None` for one that only changes or counts the packet.
fn verdict(kind: &str, value: &Value) -> Option<Verdict> {
    let target = || text(value, "target").map(str::to_owned);
    match kind {
        // What a program decides counts as not dropped, and translated packets go on.
        "accept" | "queue" | "dnat" | "redirect" | "tproxy" => Some(Verdict::Accept),
        "drop" => Some(Verdict::Drop),
        "reject" => Some(Verdict::Reject),
        "return" => Some(Verdict::Return),
        "jump" => target().map(Verdict::Jump),
        "goto" => target().map(Verdict::Goto),
        "masquerade" | "snat" => Some(Verdict::Masquerade),
        "xt" => match text(value, "name") {
            Some("REJECT") => Some(Verdict::Reject),
            Some("MASQUERADE" | "SNAT") => Some(Verdict::Masquerade),
            Some("DNAT" | "REDIRECT") => Some(Verdict::Accept),
            _ => None,
        },
        _ => None,
    }
}

/// Looks up the values that the rules of one table use.
#[derive(Clone, Copy)]
struct Values<'a, 'b> {
    home: Home<'a>,
    sets: &'b Sets<'a>,
}

impl<'a> Values<'a, '_> {
    fn of_match(self, statement: &'a Value) -> Vec<Test> {
        let (Some(left), Some(right)) = (statement.get("left"), statement.get("right")) else {
            return vec![Test::new(What::Unknown)];
        };
        let negated = match text(statement, "op") {
            Some("==" | "in") => false,
            Some("!=") => true,
            _ => return vec![Test::new(What::Unknown)],
        };
        tests(left, &self.all(right), negated)
    }

    /// Returns the entries of a verdict map: the tests of each, and what it decides.
    fn of_map(self, statement: &'a Value) -> Vec<(Vec<Test>, Verdict)> {
        let (Some(key), Some(data)) = (statement.get("key"), statement.get("data")) else {
            return Vec::new();
        };
        let (mut entries, mut rest) = (Vec::new(), None);
        for pair in self.all(data) {
            let Some([value, decision]) = pair.as_array().map(Vec::as_slice) else { continue };
            let Some((kind, target)) = decision.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            let Some(verdict) = verdict(kind, target) else { continue };
            match bare(value) {
                Value::String(any) if any == "*" => rest = Some((Vec::new(), verdict)),
                value => entries.push((tests(key, &[value], false), verdict)),
            }
        }
        entries.extend(rest);
        entries
    }

    /// Returns the values on the right side: a single one, those of an anonymous set, or those of a named set.
    fn all(self, right: &'a Value) -> Vec<&'a Value> {
        let elements = match right {
            Value::String(name) if name.starts_with('@') => {
                let set = self.sets.get(&(self.home, &name[1..]));
                set.and_then(|set| set.as_array())
            }
            Value::Array(values) => Some(values),
            Value::Object(_) => right.get("set").and_then(Value::as_array),
            _ => return vec![right],
        };
        match elements {
            Some(elements) => elements.iter().map(bare).collect(),
            None if right.is_object() => vec![right],
            // A set without elements.
            None => Vec::new(),
        }
    }
}

/// Strips counters from an element.
fn bare(element: &Value) -> &Value {
    element.get("elem").and_then(|inner| inner.get("val")).unwrap_or(element)
}

/// Returns what `left` must be: one of `values`, or none of them.
fn tests(left: &Value, values: &[&Value], negated: bool) -> Vec<Test> {
    if let Some(parts) = left.get("concat").and_then(Value::as_array) {
        return vec![Test::unless(concatenation(parts, values), negated)];
    }
    let (mut implied, what) = subject(left, values);
    implied.push(Test::unless(what, negated));
    implied
}

fn concatenation(parts: &[Value], values: &[&Value]) -> What {
    let group = |value: &&Value| {
        let inner = value.get("concat").and_then(Value::as_array).filter(|inner| inner.len() == parts.len());
        match inner {
            Some(inner) => {
                parts.iter().zip(inner).flat_map(|(part, value)| tests(part, &[bare(value)], false)).collect()
            }
            None => vec![Test::new(What::Unknown)],
        }
    };
    What::OneOf(values.iter().map(group).collect())
}

/// Returns what is compared with `values`, and the tests that its presence implies.
fn subject(left: &Value, values: &[&Value]) -> (Vec<Test>, What) {
    let known = |what: Option<What>| what.unwrap_or(What::Unknown);
    let words = || values.iter().map(|value| word(value)).collect::<Option<Vec<_>>>();
    let key = |kind: &str| left.get(kind).and_then(|inner| text(inner, "key"));
    if let Some(key) = key("meta") {
        return (Vec::new(), known(words().and_then(|words| of_meta(key, words))));
    }
    if let Some(key) = key("ct") {
        return (Vec::new(), known(words().and_then(|words| of_connection(key, words))));
    }
    if let Some(payload) = left.get("payload") {
        let (Some(protocol), Some(field)) = (text(payload, "protocol"), text(payload, "field")) else {
            return (Vec::new(), What::Unknown);
        };
        return of_payload(protocol, field, values);
    }
    let fib = left.get("fib").filter(|fib| text(fib, "result") == Some("type"));
    if fib.and_then(|fib| fib.get("flags")).is_some_and(is_destination)
        && let Some(words) = words()
    {
        let is_local = words.iter().any(|word| word == "local");
        return (Vec::new(), if is_local { What::ForThisHost } else { What::Never });
    }
    (Vec::new(), What::Unknown)
}

fn is_destination(flags: &Value) -> bool {
    flags == "daddr" || flags.as_array().is_some_and(|flags| flags.len() == 1 && flags[0] == "daddr")
}

fn of_meta(key: &str, words: Vec<String>) -> Option<What> {
    let patterns = |words: Vec<String>| words.iter().map(|word| Pattern::new(word, '*')).collect();
    Some(match key {
        "iifname" | "iif" => What::In(patterns(words)),
        "oifname" | "oif" => What::Out(patterns(words)),
        "l4proto" => What::Protocol(words),
        "nfproto" | "protocol" => match words.first().map(String::as_str) {
            Some("ipv4" | "ip") if words.len() == 1 => What::Ipv6(false),
            Some("ipv6" | "ip6") if words.len() == 1 => What::Ipv6(true),
            _ => return None,
        },
        _ => return None,
    })
}

fn of_connection(key: &str, words: Vec<String>) -> Option<What> {
    match key {
        "state" => Some(What::State(words)),
        "status" if words.iter().all(|word| matches!(word.as_str(), "dnat" | "snat")) => Some(What::Never),
        _ => None,
    }
}

fn of_payload(protocol: &str, field: &str, values: &[&Value]) -> (Vec<Test>, What) {
    let implied = match protocol {
        "ip" => vec![Test::new(What::Ipv6(false))],
        "ip6" => vec![Test::new(What::Ipv6(true))],
        "tcp" | "udp" | "sctp" | "dccp" | "udplite" => {
            vec![Test::new(What::Protocol(vec![protocol.to_owned()]))]
        }
        _ => Vec::new(),
    };
    let ranges = || values.iter().map(|value| network(value)).collect::<Option<Vec<_>>>();
    let what = match (protocol, field) {
        ("ip" | "ip6", "saddr") => Some(ranges().map_or(What::SomeSources, What::Source)),
        ("ip" | "ip6", "daddr") => ranges().map(What::Destination),
        ("ip", "protocol") | ("ip6", "nexthdr") => {
            values.iter().map(|value| word(value)).collect::<Option<Vec<_>>>().map(What::Protocol)
        }
        ("tcp" | "udp" | "th" | "sctp" | "dccp" | "udplite", "dport") => {
            values.iter().map(|value| ports(value)).collect::<Option<Vec<_>>>().map(What::DestinationPort)
        }
        _ => None,
    };
    (implied, what.unwrap_or(What::Unknown))
}

fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn network(value: &Value) -> Option<Addresses> {
    let ip = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return IpNetwork::new(ip(prefix.get("addr")?)?, length).ok().map(addresses);
    }
    if let Some([first, last]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return Some(ip(first)?..=ip(last)?);
    }
    ip(value).map(|ip| ip..=ip)
}

fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    match value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, last]) => Some(port(first)?..=port(last)?),
        _ => port(value).map(|port| port..=port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the rules of chain `c` in a table that also has these objects.
    fn rules(expressions: &[&str], others: &str) -> Vec<Rule> {
        let rules: Vec<String> = expressions
            .iter()
            .map(|expression| {
                format!(r#"{{"rule":{{"family":"inet","table":"a","chain":"c","expr":[{expression}]}}}}"#)
            })
            .collect();
        let listing = format!(r#"{{"nftables":[{others}{}]}}"#, rules.join(","));
        parse(&listing).unwrap().remove(0).chains.remove("c").unwrap().rules
    }

    fn one(expression: &str) -> Vec<Test> {
        let mut rules = rules(&[&format!(r#"{expression},{{"counter":{{}}}},{{"accept":null}}"#)], "");
        assert_eq!((rules.len(), &rules[0].verdict), (1, &Verdict::Accept));
        rules.remove(0).tests
    }

    #[test]
    fn a_base_chain_has_hook_priority_and_policy() {
        let listing = r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},{"table":{"family":"inet","name":"f","handle":1}},
            {"chain":{"family":"inet","table":"f","name":"x","handle":1,"type":"filter","hook":"forward","prio":10,"policy":"drop"}},
            {"chain":{"family":"bridge","table":"f","name":"x","handle":1,"type":"filter","hook":"forward","prio":0,"policy":"drop"}}]}"#;
        let tables = parse(listing).unwrap();
        assert_eq!(tables.len(), 1, "what a bridge forwards is not routed");
        let base = Base { hook: Hook::Forward, priority: 10, drops: true };
        assert_eq!(tables[0].chains["x"].base, Some(base));
    }

    #[test]
    fn matches_are_read_as_nft_writes_them() {
        let device =
            r#"{"match":{"op":"!=","left":{"meta":{"key":"iifname"}},"right":{"set":["lo","fl*"]}}}"#;
        let names = vec![Pattern::new("lo", '*'), Pattern::new("fl*", '*')];
        assert_eq!(one(device), [Test::unless(What::In(names), true)]);

        let source = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":
            {"set":[{"prefix":{"addr":"10.0.0.0","len":8}},{"range":["192.168.1.3","192.168.1.5"]}]}}}"#;
        let ranges = ["10.0.0.0 10.255.255.255", "192.168.1.3 192.168.1.5"].map(|range| {
            let (first, last) = range.split_once(' ').unwrap();
            first.parse().unwrap()..=last.parse().unwrap()
        });
        assert_eq!(one(source), [Test::new(What::Ipv6(false)), Test::new(What::Source(ranges.into()))]);

        let port = r#"{"match":{"op":"==","left":{"payload":{"protocol":"udp","field":"dport"}},"right":{"set":[53,{"range":[8000,9000]}]}}}"#;
        let udp = What::Protocol(vec!["udp".into()]);
        let ports = What::DestinationPort(vec![53..=53, 8000..=9000]);
        assert_eq!(one(port), [Test::new(udp), Test::new(ports)]);

        let states = What::State(vec!["established".into(), "related".into()]);
        let state =
            r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}}"#;
        assert_eq!(one(state), [Test::new(states)]);
        let local =
            r#"{"match":{"op":"==","left":{"fib":{"result":"type","flags":["daddr"]}},"right":"local"}}"#;
        assert_eq!(one(local), [Test::new(What::ForThisHost)]);
        assert_eq!(
            one(r#"{"match":{"op":"in","left":{"ct":{"key":"status"}},"right":"dnat"}}"#),
            [Test::new(What::Never)]
        );
        assert_eq!(one(r#"{"xt":{"type":"match","name":"comment"}}"#), []);
        for unknown in [
            r#"{"xt":{"type":"match","name":"multiport"}}"#,
            r#"{"xt":null}"#,
            r#"{"limit":{"rate":3,"burst":5,"per":"second"}}"#,
            r#"{"ct count":{"val":5,"inv":true}}"#,
            r#"{"set":{"op":"add","elem":{"payload":{"protocol":"ip","field":"saddr"}},"set":"@s","stmt":[{"limit":{"rate":10,"burst":5,"per":"second","inv":true}}]}}"#,
            r#"{"match":{"op":"==","left":{"&":[{"meta":{"key":"mark"}},1]},"right":1}}"#,
            r#"{"match":{"op":">","left":{"meta":{"key":"length"}},"right":1000}}"#,
        ] {
            assert_eq!(one(unknown), [Test::new(What::Unknown)], "{unknown}");
        }
    }

    #[test]
    fn a_drop_above_a_rate_for_each_sender_is_undecided() {
        // meta l4proto udp meter flood { ip saddr limit rate over 100/second } drop
        let flood = r#"{"match":{"op":"==","left":{"meta":{"key":"l4proto"}},"right":"udp"}},{"meter":{"key":{"payload":
            {"protocol":"ip","field":"saddr"}},"stmt":{"limit":{"rate":100,"burst":5,"per":"second","inv":true}},
            "size":65535,"name":"flood"}},{"drop":null}"#;
        let tests = vec![Test::new(What::Protocol(vec!["udp".into()])), Test::new(What::Unknown)];
        assert_eq!(rules(&[flood], ""), [Rule { tests, verdict: Verdict::Drop }]);
        let noted = r#"{"set":{"op":"add","elem":{"payload":{"protocol":"ip","field":"saddr"}},"set":"@s"}}"#;
        assert_eq!(one(noted), [], "a set without a rate lets everything on");
    }

    #[test]
    fn maps_and_named_sets_are_looked_up() {
        let map = r#"{"map":{"family":"inet","name":"m","table":"a","type":"ifname","map":"verdict","elem":[["*",{"drop":null}],["docker0",{"jump":{"target":"in"}}]]}},"#;
        let rules_of_map = rules(&[r#"{"vmap":{"key":{"meta":{"key":"oifname"}},"data":"@m"}}"#], map);
        let docker0 = Test::new(What::Out(vec![Pattern::new("docker0", '*')]));
        assert_eq!(
            rules_of_map,
            [
                Rule { tests: vec![docker0], verdict: Verdict::Jump("in".into()) },
                Rule { tests: vec![], verdict: Verdict::Drop },
            ]
        );
        let set = r#"{"set":{"family":"inet","name":"s","table":"a","type":"ifname","elem":["eth0",{"elem":{"val":"eth1","expires":9}}]}},"#;
        let by_set = rules(
            &[r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"@s"}},{"drop":null}"#],
            set,
        );
        let both = What::In(vec![Pattern::new("eth0", '*'), Pattern::new("eth1", '*')]);
        assert_eq!(by_set, [Rule { tests: vec![Test::new(both)], verdict: Verdict::Drop }]);
    }

    #[test]
    fn concatenations_hold_part_by_part() {
        let tests = one(
            r#"{"match":{"op":"==","left":{"concat":[{"meta":{"key":"iifname"}},{"meta":{"key":"oifname"}}]},
            "right":{"set":[{"concat":["lo","eth0"]}]}}}"#,
        );
        let group = vec![
            Test::new(What::In(vec![Pattern::new("lo", '*')])),
            Test::new(What::Out(vec![Pattern::new("eth0", '*')])),
        ];
        assert_eq!(tests, [Test::new(What::OneOf(vec![group]))]);
    }

    #[test]
    fn targets_of_iptables_are_verdicts() {
        let verdict = |expression: &str| rules(&[expression], "").pop().map(|rule| rule.verdict);
        assert_eq!(verdict(r#"{"xt":{"type":"target","name":"REJECT"}}"#), Some(Verdict::Reject));
        assert_eq!(verdict(r#"{"xt":{"type":"target","name":"MASQUERADE"}}"#), Some(Verdict::Masquerade));
        assert_eq!(verdict(r#"{"xt":{"type":"target","name":"LOG"}}"#), None);
        assert_eq!(verdict(r#"{"goto":{"target":"x"}}"#), Some(Verdict::Goto("x".into())));
    }

    #[test]
    fn what_is_no_listing_is_an_error() {
        assert!(parse("").is_err());
        assert!(parse("{}").is_err());
    }
}
