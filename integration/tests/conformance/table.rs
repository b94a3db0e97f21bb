//! A table of cases, each of which must find no difference.

use anyhow::{Context, Result, ensure};
use flan_integration::store::StoreData;

use crate::pair::Pair;

/// A case by its name.
pub(crate) type Case = (&'static str, fn(&mut Pair) -> Result<()>);

/// Tells all cases with one pair of servers, one after the other, and then of every difference that was found.
pub(crate) fn no_difference_in(cases: &[Case]) -> Result<()> {
    no_difference_with(StoreData::InMemory, cases)
}

/// As [`no_difference_in`], with the data somewhere else.
pub(crate) fn no_difference_with(data: StoreData, cases: &[Case]) -> Result<()> {
    Pair::run(data, |pair| {
        let mut differences = Vec::new();
        for (name, case) in cases {
            if let Err(difference) = case(pair) {
                differences.push(format!("{name}: {difference:#}"));
                // What the two hold may differ from now on, and would be found again in every case that follows.
                pair.start_afresh().with_context(|| differences.join("\n"))?;
            }
        }
        let (found, of) = (differences.len(), cases.len());
        ensure!(found == 0, "{found} of {of} cases find a difference:\n{}", differences.join("\n"));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Call;
    use crate::requests::{put, range};

    #[test]
    fn a_write_that_only_one_of_two_servers_has_is_found_and_not_found_again_afterwards() {
        let cases: &[Case] = &[
            ("a key of one", |pair| {
                let wire = pair.sides()[1].wire.clone();
                let write = async move { Ok(Call::from(put("table/a", "1")).send(&wire).await) };
                pair.inside().run(std::time::Duration::from_secs(5), write)?;
                pair.same(range("table/a")).map(drop)
            }),
            ("a key of both", |pair| {
                pair.done(put("table/b", "1"))?;
                pair.done(range("table/b")).map(drop)
            }),
        ];
        let error = no_difference_in(cases).unwrap_err().to_string();
        let found = error.matches("1 of 2 cases find a difference:\na key of one: Range(").count();
        assert!(found > 0 && found == error.matches(" of 2 cases ").count(), "{error}");
    }
}
