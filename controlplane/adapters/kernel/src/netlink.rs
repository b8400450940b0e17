//! Links, addresses, routes and rules over rtnetlink.

use std::fmt;
use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinHandle;
use towpath_base::selector::Prefix;

/// A netlink connection to the network namespace it was opened in.
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// MTU, bytes.
    pub mtu: u32,
}

/// Addresses of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Can be bound and sent from.
    pub usable: Vec<IpAddr>,
    /// IPv6 addresses whose uniqueness is still being checked (RFC 4862 §5.4): usable in a moment.
    pub tentative: Vec<IpAddr>,
}

/// The main table of routes (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Prefix,
    /// Index of the outgoing interface.
    pub interface: u32,
    /// Source address of packets that have none yet; an address of this host and of the same family.
    pub source: IpAddr,
    /// Its table; [`MAIN_TABLE`] is everybody's.
    pub table: u32,
}

/// Packets with a mark look into a table first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkRule {
    /// IPv4; else IPv6.
    pub v4: bool,
    /// Mark of the socket or packet.
    pub mark: u32,
    /// Bits of it that count.
    pub mask: u32,
    /// The table.
    pub table: u32,
    /// Rules are looked at in this order; those of the main table have 32766.
    pub priority: u32,
}

/// A request the kernel refused, or an interface that does not exist.
#[derive(Debug)]
pub struct NetlinkError {
    what: String,
    source: Option<rtnetlink::Error>,
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(rtnetlink::Error::NetlinkError(error)) => write!(f, "{}: {}", self.what, error.to_io()),
            Some(error) => write!(f, "{}: {error}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for NetlinkError {}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    let what = what.into();
    |source| NetlinkError {
        what,
        source: Some(source),
    }
}

impl Netlink {
    /// Opens a connection; inside a tokio runtime, on which it then runs.
    pub fn connect() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// The interface called `name`.
    pub async fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        let mut found = std::pin::pin!(self.handle.link().get().match_name(name.to_owned()).execute());
        let what = || format!("interface {name}");
        let link = found.try_next().await.map_err(failed(what()))?;
        let link = link.ok_or_else(|| NetlinkError {
            what: format!("no interface {name}"),
            source: None,
        })?;
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok(Link {
            index: link.header.index,
            mtu: mtu.unwrap_or(1500),
        })
    }

    /// Addresses of global scope of interface `index`, in the kernel's order, without deprecated ones.
    pub async fn global_addresses(&self, index: u32) -> Result<Addresses, NetlinkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Vec<AddressMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(failed("addresses"))?;
        let mut addresses = Addresses::default();
        for message in messages
            .iter()
            .filter(|message| message.header.scope == AddressScope::Universe)
        {
            let flags = flags(message);
            let Some(address) = local(message) else { continue };
            if flags.intersects(AddressFlags::Deprecated | AddressFlags::Dadfailed) {
                continue;
            }
            if flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic) {
                addresses.tentative.push(address);
            } else {
                addresses.usable.push(address);
            }
        }
        Ok(addresses)
    }

    /// Adds `route`. A route to the same destination and of the same metric is an error: it is not ours to replace.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(message(route)?);
        request
            .execute()
            .await
            .map_err(failed(format!("route to {}", route.destination)))
    }

    /// Removes `route`.
    pub async fn remove_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let request = self.handle.route().del(message(route)?);
        request
            .execute()
            .await
            .map_err(failed(format!("removing the route to {}", route.destination)))
    }

    /// Adds `rule`. The same rule there already is an error.
    pub async fn add_rule(&self, rule: &MarkRule) -> Result<(), NetlinkError> {
        let mut request = self.handle.rule().add();
        *request.message_mut() = rule_message(rule);
        request
            .execute()
            .await
            .map_err(failed(format!("rule for mark {:#x}", rule.mark)))
    }

    /// Removes `rule`.
    pub async fn remove_rule(&self, rule: &MarkRule) -> Result<(), NetlinkError> {
        let request = self.handle.rule().del(rule_message(rule));
        request
            .execute()
            .await
            .map_err(failed(format!("removing the rule for mark {:#x}", rule.mark)))
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Netlink")
    }
}

fn message(route: &Route) -> Result<RouteMessage, NetlinkError> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.destination.address(), route.destination.bits())
        .and_then(|builder| builder.pref_source(route.source))
        .map_err(|error| NetlinkError {
            what: error.to_string(),
            source: None,
        })?;
    Ok(builder
        .output_interface(route.interface)
        .table_id(route.table)
        .build())
}

fn rule_message(rule: &MarkRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.v4 {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.mark),
        RuleAttribute::FwMask(rule.mask),
        RuleAttribute::Table(rule.table),
    ];
    message
}

fn flags(message: &AddressMessage) -> AddressFlags {
    let found = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    found.unwrap_or(AddressFlags::empty())
}

fn local(message: &AddressMessage) -> Option<IpAddr> {
    // On point-to-point links the address attribute is the other end's.
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}
