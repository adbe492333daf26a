"""Checks of the dependencies: licences and known vulnerabilities. No part of the installed packages."""
