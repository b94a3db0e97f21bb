//! Debian forky, the next release beside the machine's own: its Docker and its etcd, from a root directory that
//! `integration/forky-root.sh` makes once and keeps.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::command::{self, Place};

/// Enters the root and becomes the shell that prepares a host there. Arguments: that shell's script, the root, the
/// directory of the binaries, that of the lab; what follows goes to the script: the host's name and its directory.
///
/// The root is shared by several hosts, and none writes into it. Each has the root's programs read-only, and an /etc, a
/// /var and a /tmp of its own in memory. The lab's directory and the binaries are found where they are on the machine.
/// What comes of it is a mount point, which dockerd and the runtime below it require of the directory that they call /.
pub(crate) const ENTER: &str = r#"
set -e
script=$1 root=$2 binaries=$3 lab=$4
shift 4
mkdir "$2/root"
mount -t tmpfs -o mode=755 forky "$2/root"
cd "$2/root"
mkdir -p dev mnt proc root run sys usr var/lib
mkdir -m 1777 tmp var/tmp
cp -a "$root/bin" "$root/sbin" "$root"/lib* "$root/etc" .
mount --bind "$root/usr" usr
mount -o remount,bind,ro usr
mount -t sysfs none sys
for shared in /dev /proc /sys/fs/cgroup; do mount --rbind "$shared" ".$shared"; done
for same in "$binaries" "$lab"; do
    mkdir -p ".$same"
    mount --bind "$same" ".$same"
done
pivot_root . mnt
cd /
umount -l /mnt
exec sh -c "$script" sh "$@"
"#;

/// The root directory. Where it is missing, or holds something else than this tree wants, it is made, which takes a
/// minute and the network.
pub fn root() -> Result<&'static Path> {
    // Asked once, also where it failed: the next test would only wait as long for the same.
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| ask(&mut Command::new(path())).map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow!("no root of Debian forky: {error}"))
}

/// A command that runs a program of the root without entering it: by the root's loader, with the root's libraries. For
/// programs that need no other file of their release.
pub(crate) fn command(place: &Place, program: &str) -> Result<Command> {
    let usr = root()?.join("usr");
    let libraries = usr.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH));
    let loader = loader_in(&libraries)?;
    let words: [OsString; 3] = [loader.into(), "--library-path".into(), libraries.into()];
    Ok(place.then(words).command(usr.join("bin").join(program)))
}

/// The program's loader, whose name depends on the architecture: `ld-linux-x86-64.so.2`.
fn loader_in(libraries: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(libraries).with_context(|| format!("cannot list {}", libraries.display()))?;
    let mut loaders =
        entries.flatten().filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"ld-linux"));
    let loader = loaders.next().with_context(|| format!("no ld-linux in {}", libraries.display()))?;
    Ok(loader.path())
}

/// The script that makes the root.
fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("forky-root.sh")
}

/// Runs the script for as long as it takes. What it tells goes where our own errors go.
pub(crate) fn ask(script: &mut Command) -> Result<PathBuf> {
    let line = command::line(script);
    let asked = script.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let asked = asked.with_context(|| format!("cannot run {line}"))?;
    ensure!(asked.status.success(), "{line} ended with {}, for the reason that it printed", asked.status);
    let path = String::from_utf8(asked.stdout).context("the path is not UTF-8")?;
    Ok(PathBuf::from(path.trim_end()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Output;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::{env, thread};

    use super::*;

    /// Programs that the script finds before the machine's: with them it needs neither root nor a mirror.
    const PROGRAMS: [(&str, &str); 5] = [
        ("apt-get", "true"),
        ("dpkg", "echo amd64"),
        ("id", "echo 0 | tee -a $STAGE/started"),
        ("unshare", r#"while case $1 in --*) true ;; *) false ;; esac; do shift; done; exec "$@""#),
        (
            "debootstrap",
            r#"
            while case $1 in --*) true ;; *) false ;; esac; do shift; done
            echo "$@" >> $STAGE/calls
            if [ -e "$STAGE/fails" ]; then echo "E: no such mirror"; exit 1; fi
            mkdir -p "$2/var/lib/dpkg"
            printf 'Package: docker.io\nVersion: 28.5.2\n\nPackage: apt\nVersion: 3\n' > "$2/var/lib/dpkg/status"
        "#,
        ),
    ];

    /// A directory with those programs, and the root that is to be made in it.
    struct Stage {
        dir: PathBuf,
    }

    impl Stage {
        fn set() -> Stage {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("flan-forky-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let stage = Stage { dir: env::temp_dir().join(name) };
            fs::create_dir_all(stage.dir.join("bin")).unwrap();
            for (name, script) in PROGRAMS {
                stage.write_program(name, script);
            }
            stage
        }

        fn write_program(&self, name: &str, script: &str) {
            let path = self.dir.join("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn root(&self) -> PathBuf {
            self.dir.join("root")
        }

        /// The script with those programs, which is to make its root there.
        fn script(&self, script: &Path, root: &str) -> Command {
            let path = format!("{}:{}", self.dir.join("bin").display(), env::var("PATH").unwrap());
            let mut script = Command::new(script);
            script.env("PATH", path).env("STAGE", &self.dir).env("FLAN_FORKY_ROOT", root);
            script
        }

        fn run(&self) -> Output {
            self.script(&path(), self.root().to_str().unwrap()).output().unwrap()
        }

        /// Runs the script, which must name the root.
        fn make(&self) {
            self.check_made(&self.run());
        }

        fn check_made(&self, output: &Output) {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            assert_eq!(output.stdout, format!("{}\n", self.root().display()).into_bytes(), "{said}");
        }

        /// Runs the script, which must fail with these words.
        fn fail(&self, words: &str) {
            let output = self.run();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains(words), "{said}");
        }

        /// How often debootstrap was run.
        fn calls(&self) -> usize {
            fs::read_to_string(self.dir.join("calls")).unwrap_or_default().lines().count()
        }
    }

    impl Drop for Stage {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn a_root_is_made_once_and_says_what_it_holds() {
        let stage = Stage::set();
        stage.make();
        stage.make();
        assert_eq!(stage.calls(), 1);
        let stamp = fs::read_to_string(stage.root().join(".flan-root")).unwrap();
        assert!(stamp.starts_with("forky amd64 docker.io,"), "{stamp}");
        assert!(stamp.ends_with("\ndocker.io\n28.5.2\n"), "{stamp}");
    }

    #[test]
    fn a_root_that_holds_something_else_than_is_wanted_is_replaced() {
        let stage = Stage::set();
        stage.make();
        fs::write(stage.root().join(".flan-root"), "forky amd64 docker.io\n").unwrap();
        fs::write(stage.root().join("old"), "").unwrap();
        stage.make();
        assert_eq!(stage.calls(), 2);
        assert!(!stage.root().join("old").exists());
    }

    #[test]
    fn a_root_that_could_not_be_completed_is_not_there_and_made_anew() {
        let stage = Stage::set();
        fs::write(stage.dir.join("fails"), "").unwrap();
        stage.fail("E: no such mirror");
        assert!(!stage.root().exists());
        fs::remove_file(stage.dir.join("fails")).unwrap();
        fs::write(stage.dir.join("root.flan-new/left"), "").unwrap();
        stage.make();
        assert!(!stage.root().join("left").exists());
    }

    #[test]
    fn a_directory_of_somebody_else_is_left_alone() {
        let stage = Stage::set();
        fs::create_dir(stage.root()).unwrap();
        fs::write(stage.root().join("letter"), "").unwrap();
        stage.fail("was not made by this script");
        assert!(stage.root().join("letter").exists());
    }

    #[test]
    fn nothing_beside_the_root_is_touched_that_has_another_name() {
        let stage = Stage::set();
        fs::create_dir(stage.dir.join("root.new")).unwrap();
        for theirs in ["root.new/letter", "root.lock", "root.log"] {
            fs::write(stage.dir.join(theirs), "theirs").unwrap();
        }
        stage.make();
        for theirs in ["root.new/letter", "root.lock", "root.log"] {
            assert_eq!(fs::read_to_string(stage.dir.join(theirs)).unwrap(), "theirs", "{theirs}");
        }
    }

    #[test]
    fn a_slash_at_the_end_of_the_path_changes_nothing() {
        let stage = Stage::set();
        let root = format!("{}/./root//", stage.dir.display());
        stage.check_made(&stage.script(&path(), &root).output().unwrap());
        // Made anew, it is made beside the old one again, and not in it.
        fs::write(stage.root().join(".flan-root"), "forky amd64 docker.io\n").unwrap();
        stage.check_made(&stage.script(&path(), &root).output().unwrap());
        let mut made: Vec<_> =
            fs::read_dir(stage.root()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        made.sort();
        assert_eq!(made, [".flan-root", "var"]);
    }

    #[test]
    fn trees_that_want_different_packages_have_different_roots() {
        let stage = Stage::set();
        // Without root it says where it would make it, and makes nothing.
        stage.write_program("id", "echo 1000");
        stage.write_program("dpkg", "echo some-arch");
        let where_with = |script: &Path| {
            let output = stage.script(script, "").output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            let (_, after) = said.split_once("there is no ").unwrap();
            let root = after.split(' ').next().unwrap().to_owned();
            assert!(root.starts_with("/var/cache/flan/forky-some-arch-"), "{said}");
            root
        };
        let others = stage.dir.join("bin/forky-root.sh");
        fs::write(&others, fs::read_to_string(path()).unwrap().replace("docker.io,", "docker.io,curl,"))
            .unwrap();
        fs::set_permissions(&others, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(where_with(&path()), where_with(&path()));
        assert_ne!(where_with(&path()), where_with(&others));
    }

    #[test]
    fn of_two_runs_at_once_one_waits_for_the_other() {
        let stage = Stage::set();
        let debootstrap = fs::read_to_string(stage.dir.join("bin/debootstrap")).unwrap();
        // Works until the second run is past its look for the root.
        let wait = "until [ \"$(wc -l < $STAGE/started)\" -ge 2 ]; do sleep 0.01; done";
        stage.write_program("debootstrap", &format!("{wait}\n{debootstrap}"));
        thread::scope(|scope| {
            scope.spawn(|| stage.make());
            scope.spawn(|| stage.make());
        });
        assert_eq!(stage.calls(), 1);
    }

    #[test]
    fn without_root_it_says_how_to_make_one() {
        let stage = Stage::set();
        stage.write_program("id", "echo 1000");
        stage.fail("making it needs root: sudo ");
        assert_eq!(stage.calls(), 0);
    }
}
