//! The manual speaks of what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates whose tests the manual names.
const CRATES: [&str; 10] = [
    "agent",
    "agent-api",
    "backends",
    "connections",
    "embedded-store",
    "flanctl",
    "integration",
    "kernel",
    "subnet-lease",
    "tls-files",
];

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
    let rows = text.lines().filter_map(|line| line.strip_prefix('|')?.trim_end().strip_suffix('|'));
    rows.filter_map(|row| row.rsplit('|').next()).flat_map(|cell| cell.split('`').skip(1).step_by(2))
}

#[test]
fn every_difference_from_flannel_names_a_test_that_is_there() {
    let mut code = String::new();
    for name in CRATES {
        for part in ["src", "tests"] {
            let dir = tree().join(name).join(part);
            if dir.is_dir() {
                sources(&dir, &mut code);
            }
        }
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
    let source = read("agent-api/src/problem.rs");
    let start = source.find("pub enum Code {").unwrap();
    let end = start + source[start..].find("\n}").unwrap();
    let variants = source[start..end].lines().filter_map(|line| line.trim().strip_suffix(','));
    let codes: BTreeSet<String> = variants.filter(|name| !name.starts_with('/')).map(kebab_case).collect();
    assert!(codes.len() > 5, "{codes:?}");
    let manual = read("docs/manual.md");
    let missing: Vec<&String> =
        codes.iter().filter(|code| !manual.contains(&format!("\n| `{code}` |"))).collect();
    assert!(missing.is_empty(), "not in the manual: {missing:?}");
}

fn kebab_case(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}
