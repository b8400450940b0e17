//! Links between nodes of one network, and what becomes of strangers.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use towpath_channel::{Authority, Event, Hub, Identity, LinkId, Part, Peer, Settings};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn identity(authority: &Authority, directory: &Path, name: &str, parts: &[Part]) -> Identity {
    let issued = authority.issue(name, parts).unwrap();
    let path = |file: &str| directory.join(format!("{name}.{file}"));
    std::fs::write(path("pem"), &issued.certificate).unwrap();
    std::fs::write(path("key"), issued.private_key.as_bytes()).unwrap();
    std::fs::write(path("ca"), authority.certificate()).unwrap();
    Identity::load(name, &path("pem"), &path("key"), &path("ca")).unwrap()
}

fn peer(name: &str, part: Part) -> Peer {
    Peer {
        name: name.into(),
        part,
    }
}

async fn up(hub: &mut Hub) -> (LinkId, Part, Peer) {
    match timeout(PATIENCE, hub.event()).await.expect("an event") {
        Event::Up { link, own, peer } => (link, own, peer),
        other => panic!("{other:?}"),
    }
}

async fn message(hub: &mut Hub) -> (LinkId, Vec<u8>) {
    match timeout(PATIENCE, hub.event()).await.expect("an event") {
        Event::Message { link, bytes } => (link, bytes.to_vec()),
        other => panic!("{other:?}"),
    }
}

async fn down(hub: &mut Hub) -> String {
    match timeout(PATIENCE, hub.event()).await.expect("an event") {
        Event::Down { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn messages_pass_both_ways_over_both_families_and_a_lost_link_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create().unwrap();
    let settings = Settings::default();
    let node = |name: &str, parts: &[Part]| identity(&authority, directory.path(), name, parts);
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let mut keyserver = Hub::new(node("ks1", &[Part::Keyserver]), settings);
        let address = keyserver
            .listen(any.parse().unwrap(), vec![Part::Keyserver])
            .await
            .unwrap();
        let mut gateway = Hub::new(node("gw1", &[Part::Gateway]), settings);
        gateway.dial(Part::Gateway, peer("ks1", Part::Keyserver), address.to_string());
        let (there, own, at) = up(&mut gateway).await;
        assert_eq!((own, at), (Part::Gateway, peer("ks1", Part::Keyserver)));
        let (back, own, at) = up(&mut keyserver).await;
        assert_eq!((own, at), (Part::Keyserver, peer("gw1", Part::Gateway)));
        let large = vec![7; 1 << 20];
        assert!(gateway.send(there, b"hello".to_vec()) && gateway.send(there, large.clone()));
        assert_eq!(message(&mut keyserver).await, (back, b"hello".to_vec()));
        assert_eq!(message(&mut keyserver).await, (back, large));
        assert!(keyserver.send(back, b"answer".to_vec()));
        assert_eq!(message(&mut gateway).await, (there, b"answer".to_vec()));

        keyserver.close(back);
        down(&mut keyserver).await;
        down(&mut gateway).await;
        assert!(!gateway.send(there, b"lost".to_vec()));
        let (again, ..) = up(&mut gateway).await;
        up(&mut keyserver).await;
        assert!(gateway.send(again, b"again".to_vec()));
        assert_eq!(message(&mut keyserver).await.1, b"again");
    }
}

/// Whether `stranger` gets a link to `ks1` within a second.
async fn accepted(stranger: Identity, own: Part, wanted: Peer, address: SocketAddr) -> bool {
    let mut hub = Hub::new(stranger, Settings::default());
    hub.dial(own, wanted, address.to_string());
    timeout(Duration::from_secs(1), up(&mut hub)).await.is_ok()
}

#[tokio::test]
async fn only_nodes_of_the_network_get_a_link_and_only_for_what_their_certificate_says() {
    let directory = tempfile::tempdir().unwrap();
    let other_directory = tempfile::tempdir().unwrap();
    let (authority, other) = (Authority::create().unwrap(), Authority::create().unwrap());
    let node = |name: &str, parts: &[Part]| identity(&authority, directory.path(), name, parts);
    let mut keyserver = Hub::new(node("ks1", &[Part::Keyserver]), Settings::default());
    let address = keyserver
        .listen("127.0.0.1:0".parse().unwrap(), vec![Part::Keyserver])
        .await
        .unwrap();
    let ks1 = || peer("ks1", Part::Keyserver);
    // The same, with every right: the control.
    assert!(accepted(node("gw1", &[Part::Gateway]), Part::Gateway, ks1(), address).await);
    // Another network's authority.
    let foreign = identity(&other, other_directory.path(), "gw1", &[Part::Gateway]);
    assert!(!accepted(foreign, Part::Gateway, ks1(), address).await);
    // A keyserver that would be a gateway.
    assert!(!accepted(node("ks2", &[Part::Keyserver]), Part::Gateway, ks1(), address).await);
    // A node that is not the one wanted, or not what is wanted.
    let gateway = || node("gw2", &[Part::Gateway]);
    assert!(!accepted(gateway(), Part::Gateway, peer("ks9", Part::Keyserver), address).await);
    assert!(!accepted(gateway(), Part::Gateway, peer("ks1", Part::Registry), address).await);
}

#[tokio::test]
async fn a_node_that_falls_silent_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create().unwrap();
    let node = |name: &str, parts: &[Part]| identity(&authority, directory.path(), name, parts);
    // Its heartbeats come later than the other end waits.
    let slow = Settings {
        heartbeat: Duration::from_secs(3600),
        ..Settings::default()
    };
    let mut keyserver = Hub::new(node("ks1", &[Part::Keyserver]), slow);
    let address = keyserver
        .listen("127.0.0.1:0".parse().unwrap(), vec![Part::Keyserver])
        .await
        .unwrap();
    let mut gateway = Hub::new(node("gw1", &[Part::Gateway]), Settings::default());
    gateway.dial(Part::Gateway, peer("ks1", Part::Keyserver), address.to_string());
    up(&mut gateway).await;
    let reason = down(&mut gateway).await;
    assert!(reason.starts_with("silent for"), "{reason}");
}

#[test]
fn a_certificate_of_another_node_and_files_that_are_none_are_refused_with_words() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create().unwrap();
    identity(&authority, directory.path(), "ks1", &[Part::Keyserver]);
    let path = |file: &str| directory.path().join(file);
    let error = Identity::load("ks2", &path("ks1.pem"), &path("ks1.key"), &path("ks1.ca")).unwrap_err();
    assert!(
        error.to_string().contains("not the certificate of node `ks2`"),
        "{error}"
    );
    let error = Identity::load("ks1", &path("none"), &path("ks1.key"), &path("ks1.ca")).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
    assert!(authority.issue("no.dots", &[]).is_err());
    // The authority works again from its files.
    let again = Authority::load(authority.certificate().into(), &authority.private_key()).unwrap();
    identity(&again, directory.path(), "ks3", &[Part::Keyserver]);
}
