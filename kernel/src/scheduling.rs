//! How the kernel's scheduler treats a thread (`sched(7)`).

use std::io;
use std::num::NonZero;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The "nice" value of [`prefer_this_thread`]: of a processor that both want, this thread gets nine parts of ten.
const PREFERRED: i32 = -10;

/// Lets the calling thread run before ordinary ones, without locking them out. Needs `CAP_SYS_NICE`.
pub fn prefer_this_thread() -> io::Result<()> {
    // "No process" is the caller, and on Linux that is the thread alone.
    Ok(rustix::process::setpriority_process(None, PREFERRED)?)
}

/// Lets the calling thread's pauses end when they are over, not up to 50 microseconds later, which is how long the kernel
/// gathers timers by default (`PR_SET_TIMERSLACK`).
pub fn wake_on_time() -> io::Result<()> {
    Ok(rustix::thread::set_current_timer_slack(Some(NonZero::<u64>::MIN))?)
}

/// Keeps the calling thread on every `step`-th processor from number `first` on, of those that it may use. Where that
/// leaves none, nothing changes.
pub fn stay_on_every(step: usize, first: usize) -> io::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let (mut own, mut any) = (CpuSet::new(), false);
    for processor in (first..CpuSet::count()).step_by(step.max(1)) {
        if allowed.is_set(processor)? {
            own.set(processor)?;
            any = true;
        }
    }
    if any {
        sched_setaffinity(this, &own)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count()).filter(|processor| set.is_set(*processor).unwrap()).collect()
    }

    #[test]
    fn a_thread_stays_on_its_share_of_the_processors() {
        let before = allowed();
        std::thread::spawn(move || {
            stay_on_every(2, 0).unwrap();
            let even: Vec<usize> = before.iter().copied().filter(|processor| processor % 2 == 0).collect();
            assert_eq!(allowed(), if even.is_empty() { before } else { even });
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_share_without_processors_changes_nothing() {
        let before = allowed();
        std::thread::spawn(move || {
            stay_on_every(1, CpuSet::count()).unwrap();
            assert_eq!(allowed(), before);
        })
        .join()
        .unwrap();
    }
}
