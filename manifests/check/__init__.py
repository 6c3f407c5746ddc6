"""An offline check of the manifests: built by kubectl, validated by published schemas and by rules of this project."""
