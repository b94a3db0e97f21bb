//! URLs in flags and variables, parsed only where needed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use flan_subnet_lease::{Endpoint, InvalidEndpoint, StoreError, split_urls, without_user};

/// A list of URLs separated by commas, as given. It may contain a password, so no output shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Urls(String);

/// The settings to use instead of a user in a URL: a flag for the name, a variable for the password.
pub type UserSettings = [&'static str; 2];

impl Urls {
    /// Returns each URL as given. Do not show it.
    pub fn each(&self) -> impl Iterator<Item = &str> {
        split_urls(&self.0).into_iter().map(str::trim)
    }

    /// Returns whether any of them may name a user.
    pub fn names_user(&self) -> bool {
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

/// Parses the URLs of a store's members.
///
/// # Errors
/// [`StoreError::Setting`] for an invalid URL. If it names a user, the error says which settings to use instead.
pub fn endpoints(lists: &[Urls], [name, password]: UserSettings) -> Result<Vec<Endpoint>, StoreError> {
    let of_list = |list: &Urls| match list.each().map(str::parse::<Endpoint>).collect::<Result<Vec<_>, _>>() {
        // It may be the first half of a URL whose password contains a separator.
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

/// Returns the URL by which a program on this host reaches a store that listens on these: loopback if possible, because
/// changes of the host's addresses do not affect it; else the first. `None` if there is none.
pub fn local_url<'a>(listen: impl Iterator<Item = &'a str>) -> Option<String> {
    let places: Vec<Place<'a>> = listen.filter_map(place).collect();
    let (scheme, address) = places.iter().find_map(on_loopback).or_else(|| places.first().copied())?;
    Some(format!("{scheme}://{address}"))
}

/// Scheme and address of a listen URL.
type Place<'a> = (&'a str, SocketAddr);

fn place(url: &str) -> Option<Place<'_>> {
    let (scheme, place) = url.trim_end_matches('/').split_once("://")?;
    let address = place.replacen("localhost:", "127.0.0.1:", 1).parse().ok()?;
    matches!(scheme, "http" | "https").then_some((scheme, address))
}

fn on_loopback<'a>(&(scheme, mut address): &Place<'a>) -> Option<Place<'a>> {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address.ip().to_canonical().is_loopback().then_some((scheme, address))
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

    fn dialled(urls: &[&str]) -> Option<String> {
        local_url(urls.iter().copied())
    }

    #[test]
    fn a_store_on_all_addresses_is_dialled_on_loopback() {
        assert_eq!(dialled(&["http://0.0.0.0:2379"]).unwrap(), "http://127.0.0.1:2379");
        assert_eq!(dialled(&["https://[::]:4001"]).unwrap(), "https://[::1]:4001");
    }

    #[test]
    fn loopback_is_dialled_wherever_it_stands_in_the_list() {
        assert_eq!(dialled(&["http://localhost:1/"]).unwrap(), "http://127.0.0.1:1");
        assert_eq!(dialled(&["http://10.0.0.2:1", "http://[::1]:2"]).unwrap(), "http://[::1]:2");
        assert_eq!(dialled(&["http://10.0.0.2:1", "http://0.0.0.0:2"]).unwrap(), "http://127.0.0.1:2");
    }

    #[test]
    fn without_loopback_the_first_address_is_dialled() {
        assert_eq!(dialled(&["https://10.0.0.2:1", "https://10.0.0.3:1"]).unwrap(), "https://10.0.0.2:1");
        assert_eq!(
            dialled(&["http://store:1", "http://[2001:db8::1]:2379"]).unwrap(),
            "http://[2001:db8::1]:2379"
        );
        assert_eq!(dialled(&[]), None);
    }
}
