//! Finding the XDP object and reading its version before anything is loaded.

use std::path::{Path, PathBuf};
use std::{env, fs};

use object::{Object, ObjectSection};
use towpath_common::abi::{ABI_SECTION, ABI_VERSION};

use crate::Error;

/// File name of the object.
pub const OBJECT_NAME: &str = "towpath-dataplane";
/// Environment variable that names the object.
pub const OBJECT_VARIABLE: &str = "TOWPATH_BPF_OBJECT";

/// Finds the object: `configured`, else the file named by [`OBJECT_VARIABLE`], else [`OBJECT_NAME`] beside the
/// running executable, in `../lib/towpath`, or where a build in the source tree leaves it.
pub fn find_object(configured: Option<&Path>) -> Result<PathBuf, Error> {
    let named = configured
        .map(Path::to_owned)
        .or_else(|| env::var_os(OBJECT_VARIABLE).map(PathBuf::from));
    let candidates = match named {
        Some(path) => vec![path],
        None => beside_executable(),
    };
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => {
            let looked_at: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
            Err(Error::NoObject {
                looked_at: looked_at.join(", "),
            })
        }
    }
}

fn beside_executable() -> Vec<PathBuf> {
    let Some(folder) = env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned))
    else {
        return Vec::new();
    };
    let mut candidates = vec![
        folder.join(OBJECT_NAME),
        folder.join("../lib/towpath").join(OBJECT_NAME),
    ];
    let built = Path::new("dataplane-ebpf/target/bpfel-unknown-none/release").join(OBJECT_NAME);
    candidates.extend(
        folder
            .ancestors()
            .skip(1)
            .map(|ancestor| ancestor.join(&built))
            .take(4),
    );
    candidates
}

/// Reads an object and checks that it speaks our [`ABI_VERSION`].
pub fn check_object(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = fs::read(path).map_err(Error::file("read", path))?;
    let found = abi_version(&bytes).map_err(|reason| Error::BadObject {
        path: path.into(),
        reason,
    })?;
    if found != ABI_VERSION {
        return Err(Error::AbiMismatch {
            what: path.display().to_string(),
            found,
            hint: ": build it again with `cargo xtask build-ebpf`",
        });
    }
    Ok(bytes)
}

fn abi_version(bytes: &[u8]) -> Result<u32, String> {
    let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
    let section = file.section_by_name(ABI_SECTION).ok_or("it has no ABI version")?;
    let data = section.data().map_err(|error| error.to_string())?;
    let version = data.first_chunk().ok_or("its ABI version is cut off")?;
    Ok(u32::from_le_bytes(*version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn something_else_is_not_an_object() {
        let exe = env::current_exe().unwrap();
        let error = check_object(&exe).unwrap_err().to_string();
        assert!(error.contains("no ABI version"), "{error}");
        assert!(matches!(
            find_object(Some(Path::new("/nowhere"))),
            Err(Error::NoObject { .. })
        ));
    }
}
