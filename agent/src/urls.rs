//! URLs as flags and variables list them, read only where they are needed.

use std::fmt;

use flan_embedded_store::ListenUrl;
use flan_subnet_lease::{Endpoint, InvalidEndpoint, StoreError, split_urls, without_user};

/// A list of URLs, separated by commas, as somebody gave it: perhaps with a password, which no output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Urls(String);

/// What takes a user in place of a URL: a flag for the name, a variable for the password.
pub type UserSettings = [&'static str; 2];

impl Urls {
    /// Each of them as it was given: to be read, not to be shown.
    pub fn each(&self) -> impl Iterator<Item = &str> {
        split_urls(&self.0).into_iter().map(str::trim)
    }

    fn names_user(&self) -> bool {
        without_user(&self.0) != self.0
    }
}

impl From<String> for Urls {
    fn from(list: String) -> Self {
        Self(list)
    }
}

impl fmt::Display for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_user(&self.0))
    }
}

impl fmt::Debug for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// The URLs of a store's members.
///
/// # Errors
/// [`StoreError::Setting`] for one that is none; where it names a user, with what takes one.
pub fn endpoints(lists: &[Urls], [name, password]: UserSettings) -> Result<Vec<Endpoint>, StoreError> {
    let of_list = |list: &Urls| match list.each().map(str::parse::<Endpoint>).collect::<Result<Vec<_>, _>>() {
        // It may be the first half of a URL with a password that holds what separates two.
        Err(InvalidEndpoint::NoUrl(_)) if list.names_user() => Err(InvalidEndpoint::User(list.to_string())),
        endpoints => endpoints,
    };
    lists.iter().map(of_list).collect::<Result<Vec<_>, _>>().map(|lists| lists.concat()).map_err(|invalid| {
        StoreError::Setting(match invalid {
            InvalidEndpoint::User(_) => format!("{invalid}, and the user by {name} and {password}"),
            InvalidEndpoint::NoUrl(_) => invalid.to_string(),
        })
    })
}

/// Where a store is to listen, as the flag `flag` says; `authorities` is the flag for those that sign clients'
/// certificates.
///
/// # Errors
/// What is no URL to listen on, and what would be.
pub fn listen(lists: &[Urls], flag: &str, authorities: &str) -> Result<Vec<ListenUrl>, String> {
    let read = |list: &Urls, url: &str| {
        url.parse().map_err(|invalid| {
            // As with endpoints, it may be a half of what names a user.
            let shown = if without_user(url) == url { list.to_string() } else { without_user(url) };
            match list.names_user() {
                false => format!("{flag} {url:?}: {invalid}"),
                true => format!(
                    "{flag} {shown}: {invalid}. The store has no users; let it demand client certificates ({authorities})"
                ),
            }
        })
    };
    lists.iter().flat_map(|list| list.each().map(move |url| read(list, url))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_shown_without_users() {
        let urls = Urls::from("http://a:1, http://u:s3cret@b:2".to_owned());
        assert_eq!(format!("{urls} {urls:?}"), "http://a:1,http://***@b:2 \"http://a:1,http://***@b:2\"");
    }

    #[test]
    fn who_names_a_user_in_a_url_is_told_what_takes_one() {
        let refusal = |text: &str| {
            let urls = [Urls::from("http://a:1".to_owned()), Urls::from(text.to_owned())];
            endpoints(&urls, ["--name", "PASSWORD"]).unwrap_err().to_string()
        };
        assert_eq!(
            refusal("http://u:s3,cret@b:2"),
            "endpoint http://***@b:2 holds a user name or password; give a URL without them, such as \
             http://127.0.0.1:2379, and the user by --name and PASSWORD"
        );
        assert_eq!(
            refusal("http://u:s3,http://cret@b:2"),
            "endpoint ***,http://***@b:2 holds a user name or password; give a URL without them, such as \
             http://127.0.0.1:2379, and the user by --name and PASSWORD"
        );
        assert_eq!(refusal("b:2"), "endpoint \"b:2\" is not a URL such as http://127.0.0.1:2379");
    }

    #[test]
    fn a_store_does_not_listen_for_users() {
        let refusal = |text: &str| {
            let urls = [Urls::from("http://127.0.0.1:1".to_owned()), Urls::from(text.to_owned())];
            listen(&urls, "--listen", "--ca").unwrap_err()
        };
        assert_eq!(
            refusal("http://u:s3cret@10.0.0.2:2379"),
            "--listen http://***@10.0.0.2:2379: expected an IP address and a port, such as http://127.0.0.1:2379. The store \
             has no users; let it demand client certificates (--ca)"
        );
        assert_eq!(
            refusal("http://store:2379"),
            "--listen \"http://store:2379\": expected an IP address and a port, such as http://127.0.0.1:2379"
        );
    }
}
