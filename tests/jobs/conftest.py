"""With this file here, the helpers beside it are found from the folders of tests below."""
