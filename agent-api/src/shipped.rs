//! What ships beside a program and is made of the definition of its command line: completions and man pages.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The section of the man pages: programs for administrators.
const SECTION: &str = "8";

/// Returns the script that completes the command line in a shell.
pub fn completions(mut command: Command, shell: Shell) -> Vec<u8> {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// Writes a man page for the program and each of its commands, such as `flanctl-subnets-ls.8`, to a directory, which is
/// created if it is missing.
///
/// # Errors
/// Any error of the file system.
pub fn man_pages(mut command: Command, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    command = command.disable_help_subcommand(true);
    command.build();
    write(&command, directory)
}

fn write(command: &Command, directory: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    let mut page = Vec::new();
    Man::new(command.clone()).title(name).section(SECTION).render(&mut page)?;
    std::fs::write(directory.join(format!("{name}.{SECTION}")), page)?;
    let mut shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.try_for_each(|command| write(command, directory))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn program() -> Command {
        let ls = Command::new("ls").about("List all").arg(Arg::new("watch").long("watch").help("Go on"));
        let hidden = Command::new("secret").hide(true);
        Command::new("prog").version("1").subcommand(Command::new("things").subcommand(ls)).subcommand(hidden)
    }

    #[test]
    fn each_command_that_is_shown_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let new = directory.path().join("new");
        man_pages(program(), &new).unwrap();
        assert_eq!(std::fs::read_dir(&new).unwrap().count(), 3);
        let page = std::fs::read_to_string(new.join("prog-things-ls.8")).unwrap();
        assert!(page.contains("List all") && page.contains("watch") && page.contains("Go on"), "{page}");
        assert!(!new.join("prog-secret.8").exists());
    }

    #[test]
    fn each_shell_completes_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(program(), shell)).unwrap();
            assert!(script.contains("things") && script.contains("watch"), "{script}");
        }
    }
}
