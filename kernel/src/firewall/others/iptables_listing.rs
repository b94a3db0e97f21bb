//! Reads the output of `iptables -S` (`iptables(8)`, `iptables-extensions(8)`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnetwork::IpNetwork;

use super::chains::{
    Addresses, Base, Chain, Hook, Owner, Pattern, Rule, Table, Test, Verdict, What, addresses,
};

/// Parses the table of this name as `program` lists it.
pub(super) fn parse(program: &'static str, ipv6: bool, table: &'static str, listing: &str) -> Table {
    let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
    for line in listing.lines() {
        let mut words = words(line).into_iter();
        let (Some(command), Some(name)) = (words.next(), words.next()) else { continue };
        let chain = chains.entry(name.clone()).or_default();
        match command.as_str() {
            "-P" => chain.base = base(&name, words.next().as_deref() == Some("DROP")),
            "-A" => chain.rules.extend(rule(&words.collect::<Vec<_>>())),
            _ => {}
        }
    }
    Table { owner: Owner::Iptables { program, ipv6, table }, chains }
}

fn base(chain: &str, drops: bool) -> Option<Base> {
    let (hook, priority) = match chain {
        "PREROUTING" => (Hook::Prerouting, -300),
        "INPUT" => (Hook::Input, 0),
        "FORWARD" => (Hook::Forward, 0),
        "POSTROUTING" => (Hook::Postrouting, 100),
        _ => return None,
    };
    Some(Base { hook, priority, drops })
}

/// Returns the words of a line; quoted text is one word.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), None::<String>, false, false);
    for character in line.chars() {
        let into = &mut word;
        match character {
            _ if escaped => {
                into.get_or_insert_default().push(character);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => {
                quoted = !quoted;
                into.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            _ => into.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// Matches that say nothing without the options that follow them.
const SILENT: [&str; 11] = [
    "comment",
    "conntrack",
    "state",
    "tcp",
    "udp",
    "multiport",
    "addrtype",
    "icmp",
    "icmp6",
    "iprange",
    "set",
];

/// Returns `None` for a rule that decides nothing, such as one that logs.
fn rule(words: &[String]) -> Option<Rule> {
    let mut tests = Vec::new();
    let mut words = words.iter().map(String::as_str).peekable();
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        if let "-j" | "-g" = word {
            let verdict = verdict(words.next()?, word == "-g")?;
            return Some(Rule { tests, verdict });
        }
        let mut values = Vec::new();
        while let Some(value) = words.next_if(|next| !is_option(next)) {
            values.push(value);
        }
        // `! --ctstate NEW` and, in old versions, `--ctstate ! NEW`.
        if word == "-m" {
            tests.extend(values.iter().any(|name| !SILENT.contains(name)).then(|| Test::new(What::Unknown)));
        } else if word != "--comment" {
            tests.push(Test::unless(what(word, &values), negated));
        }
        negated = false;
    }
    None
}

fn is_option(word: &str) -> bool {
    word == "!" || (word.starts_with('-') && word.len() > 1)
}

fn verdict(target: &str, goes: bool) -> Option<Verdict> {
    Some(match target {
        "ACCEPT" | "DNAT" | "REDIRECT" | "NFQUEUE" | "QUEUE" => Verdict::Accept,
        "DROP" => Verdict::Drop,
        "REJECT" => Verdict::Reject,
        "RETURN" => Verdict::Return,
        "MASQUERADE" | "SNAT" => Verdict::Masquerade,
        // These do not decide about the packet.
        "LOG" | "NFLOG" | "ULOG" | "MARK" | "CONNMARK" | "TCPMSS" | "CT" | "DSCP" | "TOS" | "TTL" | "SET"
        | "AUDIT" | "TRACE" | "CHECKSUM" | "CLASSIFY" | "NOTRACK" | "SECMARK" | "CONNSECMARK" | "RATEEST" => {
            return None;
        }
        chain if goes => Verdict::Goto(chain.to_owned()),
        chain => Verdict::Jump(chain.to_owned()),
    })
}

fn what(option: &str, values: &[&str]) -> What {
    known(option, values).unwrap_or(What::Unknown)
}

fn known(option: &str, values: &[&str]) -> Option<What> {
    if let ("--match-set", [_, "src"]) = (option, values) {
        return Some(What::SomeSources);
    }
    let [value] = values else { return None };
    let list = || value.split(',');
    Some(match option {
        "-i" => What::In(vec![Pattern::new(value, '+')]),
        "-o" => What::Out(vec![Pattern::new(value, '+')]),
        "-s" => What::Source(vec![addresses(network(value)?)]),
        "-d" => What::Destination(vec![addresses(network(value)?)]),
        "--src-range" => What::Source(vec![range(value)?]),
        "--dst-range" => What::Destination(vec![range(value)?]),
        "-p" => What::Protocol(vec![(*value).to_owned()]),
        "--dport" | "--dports" => What::DestinationPort(list().map(ports).collect::<Option<_>>()?),
        "--ctstate" | "--state" => What::State(list().map(str::to_lowercase).collect()),
        "--dst-type" if list().any(|kind| kind == "LOCAL") => What::ForThisHost,
        "--dst-type" => What::Never,
        _ => return None,
    })
}

fn network(text: &str) -> Option<IpNetwork> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNetwork::from))
}

fn range(text: &str) -> Option<Addresses> {
    let (first, last) = text.split_once('-')?;
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lines: &str) -> Vec<Rule> {
        parse("iptables", false, "filter", lines).chains.remove("FORWARD").unwrap().rules
    }

    #[test]
    fn policies_make_base_chains() {
        let table = parse("iptables", false, "filter", "-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER\n");
        let base = Base { hook: Hook::Forward, priority: 0, drops: true };
        assert_eq!(table.chains["FORWARD"].base, Some(base));
        assert_eq!((table.chains["OUTPUT"].base, table.chains["DOCKER"].base), (None, None));
    }

    #[test]
    fn matches_are_read_as_iptables_writes_them() {
        let tests = |line: &str| rules(&format!("-A FORWARD {line} -j ACCEPT\n")).remove(0).tests;
        assert_eq!(
            tests(r#"-s 10.5.0.0/16 ! -o flan+ -m comment --comment "a \"-j DROP\" b""#),
            [
                Test::new(What::Source(vec![addresses("10.5.0.0/16".parse().unwrap())])),
                Test::unless(What::Out(vec![Pattern::new("flan+", '+')]), true),
            ]
        );
        let udp = || Test::new(What::Protocol(vec!["udp".into()]));
        assert_eq!(
            tests("-p udp -m udp --dport 8000:9000"),
            [udp(), Test::new(What::DestinationPort(vec![8000..=9000]))]
        );
        assert_eq!(
            tests("-p udp -m multiport --dports 53,8472"),
            [udp(), Test::new(What::DestinationPort(vec![53..=53, 8472..=8472]))]
        );
        let states = What::State(vec!["related".into(), "established".into()]);
        assert_eq!(tests("-m conntrack --ctstate RELATED,ESTABLISHED"), [Test::new(states)]);
        assert_eq!(tests("-m addrtype --dst-type LOCAL"), [Test::new(What::ForThisHost)]);
        assert_eq!(tests("-d 224.0.0.251/32").len(), 1);
        assert_eq!(tests("-m set --match-set x src"), [Test::new(What::SomeSources)]);
        let range = "192.168.88.4".parse().unwrap()..="192.168.88.5".parse().unwrap();
        assert_eq!(
            tests("-m iprange --src-range 192.168.88.4-192.168.88.5"),
            [Test::new(What::Source(vec![range]))]
        );
        for unknown in
            ["-m set --match-set x dst", "-m socket", "-m limit --limit 3/min", "-m mark --mark 0x1"]
        {
            assert!(tests(unknown).contains(&Test::new(What::Unknown)), "{unknown}");
        }
    }

    #[test]
    fn targets_are_verdicts_chains_or_nothing() {
        let lines = "-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n-A FORWARD -j LOG --log-prefix \"[x] \"\n\
                     -A FORWARD -g away\n-A FORWARD -j DOCKER-USER\n-A FORWARD -i lo\n";
        let verdicts: Vec<Verdict> = rules(lines).into_iter().map(|rule| rule.verdict).collect();
        let (away, docker) = (Verdict::Goto("away".into()), Verdict::Jump("DOCKER-USER".into()));
        assert_eq!(verdicts, [Verdict::Reject, away, docker]);
    }
}
