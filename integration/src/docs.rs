//! Holds the documents to the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use flan_agent_api::Code;
use flan_subnet_lease::{ConfigWarning, NetworkConfig};

/// The crates that make up the product.
const CRATES: [&str; 13] = [
    "agent",
    "agent-api",
    "backends",
    "connections",
    "docker",
    "embedded-store",
    "flanctl",
    "host",
    "kernel",
    "names",
    "probes",
    "subnet-lease",
    "tls-files",
];

/// Figures that a document and the code must agree on: the document, its words, and the code that makes them true.
const FIGURES: [(&str, &str, &str); 11] = [
    ("docs/ARCHITECTURE.md", "0.25 s, doubled up to 30 s", "Duration::from_millis(250 << times"),
    ("docs/ARCHITECTURE.md", "5 s on each endpoint", "REQUEST_LIMIT: Duration = Duration::from_secs(5)"),
    ("docs/ARCHITECTURE.md", "30 s on the last one", "LONGEST_LIMIT: Duration = Duration::from_secs(30)"),
    ("docs/ARCHITECTURE.md", "at most four threads", "MOST_SERVING: usize = 4"),
    ("docs/ARCHITECTURE.md", "at most 64 MiB", "MOST: usize = 64 << 20"),
    ("docs/ARCHITECTURE.md", "16,384 connections", "MOST_CLIENTS: usize = 16_384"),
    ("docs/manual.md", "every 3 s", "RULES_INTERVAL: Duration = Duration::from_secs(3)"),
    ("docs/manual.md", "30 s", "GRACE: Duration = Duration::from_secs(30)"),
    ("docs/manual.md", "8192 bytes", "MOST_BYTES: usize = 8192"),
    ("docs/adr/0001-relist-after-every-interruption.md", "about 1 MiB", "PAGE_BYTES: usize = 1 << 20"),
    ("docs/adr/0011-embedded-store.md", "150 s", "TimeoutStartSec=150s"),
];

/// The documents, from the root of the tree.
fn documents() -> Vec<String> {
    let mut found: Vec<String> = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(str::to_owned).into();
    for dir in ["docs", "docs/adr"] {
        let entries = fs::read_dir(tree().join(dir)).unwrap().map(|entry| entry.unwrap().file_name());
        let names = entries.map(|name| name.into_string().unwrap());
        found.extend(names.filter(|name| name.ends_with(".md")).map(|name| format!("{dir}/{name}")));
    }
    found
}

/// The sources of the product with their tests. Strings that go on in the next line are joined.
fn product() -> String {
    let mut code = String::new();
    for name in CRATES {
        for part in ["src", "tests"] {
            let dir = tree().join(name).join(part);
            if dir.is_dir() {
                sources(&dir, &mut code);
            }
        }
    }
    let mut lines = code.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |joined, line| joined + line.trim_start())
}

/// The part of a text from `start` up to `end`.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let from = &text[text.find(start).unwrap_or_else(|| panic!("no {start}"))..];
    &from[..from.find(end).unwrap_or_else(|| panic!("no {end} after {start}"))]
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn tree() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(tree().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust sources below a directory.
fn sources(dir: &Path, found: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// What stands between backticks in the last column of the tables.
fn last_column(text: &str) -> impl Iterator<Item = &str> {
    rows(text).filter_map(|row| row.rsplit('|').next()).flat_map(quoted)
}

/// The rows of the tables, without the bars at their ends.
fn rows(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.strip_prefix('|')?.trim_end().strip_suffix('|'))
}

#[test]
fn every_difference_from_flannel_names_a_test_that_is_there() {
    let mut code = product();
    for part in ["src", "tests"] {
        sources(&tree().join("integration").join(part), &mut code);
    }
    let page = read("docs/from-flannel.md");
    let differences = &page[page.find("## Every difference").unwrap()..];
    let named: Vec<&str> = last_column(differences).collect();
    assert!(named.len() > 20, "{} tests are named", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}

#[test]
fn every_code_of_a_problem_stands_in_the_manual() {
    let manual = read("docs/manual.md");
    for code in Code::ALL {
        let start = format!("\n| `{code}` | `{}` | {} | ", code.name(), code.severity());
        let row = manual.split_once(&start).map(|(_, rest)| rest.lines().next().unwrap_or_default());
        let row = row.unwrap_or_else(|| panic!("the manual has no row that begins {start:?}"));
        assert!(
            row.ends_with(&format!(" | {} |", code.remedy())),
            "another remedy than that of the code: {row}"
        );
    }
}

/// A scenario waits for each problem by its name, in a call of one of these.
#[test]
fn every_code_of_a_problem_is_raised_in_a_scenario() {
    let mut code = String::new();
    sources(&tree().join("integration/tests/scenarios"), &mut code);
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let waits = ["problem(", "is_found(", "is_found_in(", "text_of(", "CODE: &str ="];
    let raises = |before: &str| {
        let call = before.rsplit([';', '{', '}']).next().unwrap_or_default();
        waits.iter().any(|name| call.contains(name)) && !call.contains("no_problem(")
    };
    let named = |one: &&Code| {
        let name = format!("\"{}\"", one.name());
        code.match_indices(&name).any(|(at, _)| raises(&code[..at]))
    };
    let missing: Vec<&str> = Code::ALL.iter().filter(|one| !named(one)).map(|code| code.name()).collect();
    assert!(missing.is_empty(), "no scenario raises {missing:?}");
}

#[test]
fn figures_in_the_documents_are_those_of_the_code() {
    let code = product() + &read("deploy/fland.service");
    for (document, words, source) in FIGURES {
        // A paragraph may break the line anywhere.
        let text = read(document).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(words), "{document} no longer says: {words}");
        assert!(code.contains(source), "{document} says: {words}. The code no longer has: {source}");
    }
}

#[test]
fn every_kernel_setting_that_flan_writes_is_in_the_architecture_page() {
    let source = read("kernel/src/sysctl.rs");
    let (code, _) = source.split_once("#[cfg(test)]").unwrap();
    let in_code: BTreeSet<String> = code
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("net/"))
        .map(|path| path.replace("{link}", "flannel0").replace("{bridge}", "flan-NAME").replace('/', "."))
        .collect();
    let page = read("docs/ARCHITECTURE.md");
    let invariant = between(&page, "1. **One way in.**", "2. **Known after kill -9.**");
    let in_page: BTreeSet<String> =
        quoted(invariant).filter(|text| text.starts_with("net.")).map(str::to_owned).collect();
    assert_eq!(in_code, in_page);
}

#[test]
fn every_message_that_a_document_explains_is_one_of_the_programs() {
    let code = product();
    let manual = read("docs/manual.md");
    let tls = read("docs/tls.md");
    let tables = [
        between(&manual, "### By what the log says", "## Leaving"),
        &tls[tls.find("## What the errors mean").unwrap()..],
    ];
    let messages = tables.into_iter().flat_map(rows).filter_map(|row| row.split('|').next()).flat_map(quoted);
    let mut count = 0;
    for message in messages {
        count += 1;
        // Three dots stand for what differs.
        for words in message.split("...").map(|words| words.trim_matches([' ', ','])) {
            assert!(code.contains(words), "no program says {words:?} of {message:?}");
        }
    }
    assert!(count > 40, "{count} messages");
}

#[test]
fn each_setting_of_a_backend_is_listed_with_the_backends_that_have_it() {
    let manual = read("docs/manual.md");
    let settings = between(&manual, "## Network config", "## Backends");
    let mut listed = BTreeMap::new();
    for row in rows(settings) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        for field in quoted(cells[0]).filter_map(|name| name.strip_prefix("Backend.")) {
            if field != "Type" {
                let (backends, _) = cells[1].split_once(':').unwrap_or_else(|| panic!("no backend: {row}"));
                listed.insert(field, backends.split(", ").collect::<BTreeSet<_>>());
            }
        }
    }
    assert!(listed.len() > 8, "{listed:?}");
    for (field, backends) in listed {
        for backend in ["vxlan", "udp", "host-gw", "alloc"] {
            let json = format!(
                r#"{{"Network": "10.5.0.0/16", "Backend": {{"Type": "{backend}", "{field}": null}}}}"#
            );
            let warnings = NetworkConfig::parse(json.as_bytes()).unwrap().warnings;
            let has = !warnings.contains(&ConfigWarning::UnknownField(format!("Backend.{field}")));
            assert_eq!(has, backends.contains(backend), "{field} of {backend}");
        }
    }
}

#[test]
fn every_file_that_the_architecture_page_names_is_there() {
    let page = read("docs/ARCHITECTURE.md");
    let mut directory = PathBuf::new();
    for row in rows(between(&page, "## Where things are", "Dependencies run one way")) {
        let mut parent = PathBuf::new();
        for name in quoted(row.split('|').next().unwrap()).map(str::trim) {
            let path = match name {
                name if name.starts_with("src/") => directory.join(name),
                name if parent.as_os_str().is_empty() => tree().join(name),
                name => parent.join(name),
            };
            assert!(path.exists(), "{name} in: {row}");
            match name.starts_with("src/") {
                true => parent = path.parent().unwrap().to_owned(),
                false if parent.as_os_str().is_empty() => directory = path,
                false => {}
            }
        }
    }
    let mut files = String::new();
    for name in CRATES {
        names(&tree().join(name).join("src"), &mut files);
    }
    let times = &page[page.find("\n## Time").unwrap()..];
    let missing: Vec<&str> =
        last_column(times).filter(|name| !files.contains(&format!("/{name}\n"))).collect();
    assert!(missing.is_empty(), "no such files: {missing:?}");
}

/// All files below a directory, one a line.
fn names(dir: &Path, found: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => names(&path, found),
            false => found.push_str(&format!("{}\n", path.display())),
        }
    }
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    for document in documents() {
        let (text, dir) = (read(&document), tree().join(&document).parent().unwrap().to_owned());
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { tree().join(&document) } else { dir.join(path) };
            let target =
                fs::read_to_string(&target).unwrap_or_else(|error| panic!("{document}: {link}: {error}"));
            let is_there =
                anchor.is_empty() || target.lines().filter_map(heading).any(|known| known == anchor);
            assert!(is_there, "{document}: {link} leads to no heading");
        }
    }
}

/// The anchor of a heading.
fn heading(line: &str) -> Option<String> {
    let text = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    Some(kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect())
}

#[test]
fn no_line_of_prose_is_wider_than_120_columns() {
    for document in documents() {
        let text = read(&document);
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('|')) {
            assert!(line.chars().count() <= 120, "{document}:{}: {line}", number + 1);
        }
    }
}

#[test]
fn the_makefile_calls_sudo_only_for_those_who_are_not_root() {
    let makefile = read("Makefile");
    let recipes = makefile.lines().filter(|line| line.starts_with('\t') && !line.contains("@echo"));
    let direct: Vec<&str> = recipes.filter(|line| line.contains("sudo")).collect();
    assert!(direct.is_empty(), "{direct:?}");
    assert!(makefile.contains("AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)"));
}
