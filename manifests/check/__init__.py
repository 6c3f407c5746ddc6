"""Do the manifests hold? Built by kubectl, then judged offline: by the published schemas, and by our own rules."""
