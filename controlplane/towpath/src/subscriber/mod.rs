//! `towpath subscriber`.

/// Checks an IKE proposal by its strongSwan name; the error says what was expected.
pub(crate) fn check_ike_proposal(text: &str) -> Result<(), String> {
    text.parse::<towpath_ike::IkeProposal>()
        .map(drop)
        .map_err(|error| format!("`{}`: {error}", text.escape_debug()))
}
