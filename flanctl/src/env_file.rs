//! Parses a file of variables like systemd's `EnvironmentFile=` (systemd.exec(5), `parse_env_file()` in systemd's
//! `src/basic/env-file.c`, version 254).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::Path;

/// The variables of a file.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct EnvFile {
    variables: HashMap<String, String>,
    begins_with_mark: bool,
}

impl fmt::Debug for EnvFile {
    /// Shows only the names, because a value may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

impl EnvFile {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        std::fs::read_to_string(path).map(|text| Self::parse(&text))
    }

    /// Returns the value of a variable.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    /// Returns all variables, in no order.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns whether the file begins with a byte order mark, which systemd takes as a part of the first name.
    pub(crate) fn begins_with_mark(&self) -> bool {
        self.begins_with_mark
    }

    /// Parses the text. The last assignment of a name counts. Like systemd, ignores lines without an assignment.
    fn parse(text: &str) -> Self {
        let unmarked = text.strip_prefix('\u{feff}');
        let mut reader = Reader::default();
        unmarked.unwrap_or(text).chars().for_each(|c| reader.step(c));
        reader.end();
        Self { variables: reader.variables, begins_with_mark: unmarked.is_some() }
    }
}

#[derive(Default)]
struct Reader {
    state: State,
    key: String,
    value: String,
    /// Length of the value without trailing white space.
    kept: usize,
    variables: HashMap<String, String>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    BeforeKey,
    Key,
    /// Also the state after a quoted part.
    BeforeValue,
    Value,
    Escape,
    SingleQuoted,
    DoubleQuoted,
    EscapeInQuotes,
    Comment,
}

impl Reader {
    fn step(&mut self, c: char) {
        use State as S;
        self.state = match (self.state, c) {
            (S::BeforeKey, '#' | ';') => S::Comment,
            (S::BeforeKey, c) if c.is_ascii_whitespace() => S::BeforeKey,
            (S::Key, '\n') => self.start(),
            (S::Key, '=') => S::BeforeValue,
            (S::BeforeKey | S::Key, c) => {
                self.key.push(c);
                S::Key
            }
            (S::BeforeValue | S::Value, '\n') => self.assign(),
            (S::BeforeValue, '\'') => S::SingleQuoted,
            (S::BeforeValue, '"') => S::DoubleQuoted,
            (S::BeforeValue | S::Value, '\\') => S::Escape,
            (S::BeforeValue, c) if c.is_ascii_whitespace() => S::BeforeValue,
            (S::Value, c) if c.is_ascii_whitespace() => {
                self.value.push(c);
                S::Value
            }
            // A line that ends with a backslash continues on the next.
            (S::Escape, '\n') => S::Value,
            (S::BeforeValue | S::Value | S::Escape, c) => self.push(c, S::Value),
            (S::SingleQuoted, '\'') | (S::DoubleQuoted, '"') => S::BeforeValue,
            (S::DoubleQuoted, '\\') => S::EscapeInQuotes,
            (S::SingleQuoted | S::DoubleQuoted, c) => self.push(c, self.state),
            (S::EscapeInQuotes, '\n') => S::DoubleQuoted,
            (S::EscapeInQuotes, c @ ('"' | '\\' | '`' | '$')) => self.push(c, S::DoubleQuoted),
            (S::EscapeInQuotes, c) => {
                self.push('\\', S::DoubleQuoted);
                self.push(c, S::DoubleQuoted)
            }
            (S::Comment, '\n') => S::BeforeKey,
            (S::Comment, _) => S::Comment,
        };
    }

    fn end(&mut self) {
        if !matches!(self.state, State::BeforeKey | State::Key | State::Comment) {
            self.assign();
        }
    }

    fn push(&mut self, c: char, next: State) -> State {
        self.value.push(c);
        self.kept = self.value.len();
        next
    }

    fn assign(&mut self) -> State {
        self.value.truncate(self.kept);
        let key = self.key.trim_ascii_end();
        let is_name = |c: char| c == '_' || c.is_ascii_alphanumeric();
        if !key.is_empty() && key.chars().all(is_name) && !key.starts_with(|c: char| c.is_ascii_digit()) {
            self.variables.insert(key.to_owned(), std::mem::take(&mut self.value));
        }
        self.start()
    }

    fn start(&mut self) -> State {
        self.key.clear();
        self.value.clear();
        self.kept = 0;
        State::BeforeKey
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let mut variables: Vec<_> = EnvFile::parse(text).variables.into_iter().collect();
        variables.sort();
        variables
    }

    fn value(text: &str) -> String {
        EnvFile::parse(text).value("A").unwrap()
    }

    #[test]
    fn assignments_are_read_and_comments_are_not() {
        let text = "# where\n; the store is\n\n  A=1\nB = two words  \n#C=3\nD=4 # not a comment\n";
        let read = read(text);
        let read: Vec<_> = read.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(read, [("A", "1"), ("B", "two words"), ("D", "4 # not a comment")]);
    }

    #[test]
    fn quotes_hold_together_and_are_no_part_of_the_value() {
        assert_eq!(value("A=\"one two \""), "one two ");
        assert_eq!(value("A='it''s $HOME \\'"), "its $HOME \\");
        assert_eq!(value("A=\"one\"'two' three"), "onetwothree");
        assert_eq!(value(r#"A="\"\\\$\`\n""#), "\"\\$`\\n");
        assert_eq!(value("A=\"over\ntwo lines\""), "over\ntwo lines");
        assert_eq!(value("A=it's"), "it's");
    }

    #[test]
    fn a_backslash_at_the_end_of_a_line_goes_on_in_the_next() {
        assert_eq!(value("A=http://a:1,\\\nhttp://b:2\nB=3"), "http://a:1,http://b:2");
        assert_eq!(value("A=\"one \\\ntwo\""), "one two");
        assert_eq!(value("A=a\\ b\\\\"), "a b\\");
    }

    #[test]
    fn the_last_assignment_counts_and_what_is_none_is_ignored() {
        assert_eq!(value("A=1\nA=2"), "2");
        assert_eq!(value("A=1\nA="), "");
        assert_eq!(read("export A=1\n9=2\nnothing\n=3\nB"), []);
        assert_eq!(read("A=1\r\n"), [("A".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_name_and_is_told() {
        assert_eq!(value("\u{feff}A=1"), "1");
        assert_eq!(value("\u{feff}# where = it is\nA=1"), "1");
        assert!(EnvFile::parse("\u{feff}A=1").begins_with_mark());
        assert!(!EnvFile::parse("A=1").begins_with_mark());
    }

    #[test]
    fn no_output_shows_a_value() {
        assert_eq!(
            format!("{:?}", EnvFile::parse("FLAND_ETCD_PASSWORD=s3cret")),
            "{\"FLAND_ETCD_PASSWORD\"}"
        );
    }
}
