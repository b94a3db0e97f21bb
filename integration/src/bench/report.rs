//! What the benches share of their reports: tables for people, and the file with everything for programs.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};

/// A table without lines, as wide as it needs to be.
pub fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// Sets all columns from this one on, counted from 0, to the right.
pub fn align_right_from(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// The table's lines without blanks at their ends.
pub fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Writes a file of results, and the directory that it is in. Both belong to whom the place belongs to that they are
/// made in: a bench runs as root, but not everybody who cleans up does.
pub fn write_file(file: &Path, text: &str) -> Result<()> {
    if let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        give_to_owner_of_parent(dir)?;
    }
    fs::write(file, format!("{text}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    give_to_owner_of_parent(file)
}

fn give_to_owner_of_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let owner = fs::metadata(parent).with_context(|| format!("cannot look at {}", parent.display()))?;
    chown(path, Some(owner.uid()), Some(owner.gid()))
        .with_context(|| format!("cannot change the owner of {}", path.display()))
}
