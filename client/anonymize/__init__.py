"""Anonymised video at the site: frames in -> frames out, as files, folders, cameras and pipes (docs/anonymize.md).

``stream`` is the core that everything else here is built around; it knows no file and no codec.
"""
