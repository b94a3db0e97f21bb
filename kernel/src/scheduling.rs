//! How the scheduler treats a thread (`sched(7)`).

use std::io;
use std::num::NonZero;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The nice value of [`prefer_this_thread`]: against one ordinary thread on a processor, this thread gets nine tenths.
const PREFERRED: i32 = -10;

/// Runs the calling thread before ordinary ones, without starving them. Needs `CAP_SYS_NICE`.
pub fn prefer_this_thread() -> io::Result<()> {
    // "No process" means the caller, and on Linux only the calling thread.
    Ok(rustix::process::setpriority_process(None, PREFERRED)?)
}

/// Makes the calling thread's sleeps end on time. By default the kernel coalesces timers, which delays them by up to 50
/// microseconds (`PR_SET_TIMERSLACK`).
pub fn wake_on_time() -> io::Result<()> {
    Ok(rustix::thread::set_current_timer_slack(Some(NonZero::<u64>::MIN))?)
}

/// Pins the calling thread to every `step`-th of its allowed processors, starting with number `first`. Changes nothing
/// if none would be left.
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
