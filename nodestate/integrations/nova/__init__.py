"""OpenStack Nova on nodestate: an unmodified nova-scheduler takes its host states from views.

``database_source`` and ``mirror`` publish the rows of a Nova cell; ``host_manager`` and ``install`` serve them to
nova-scheduler. Nova is not a dependency: the commands run in the Python environment of an installed Nova.
"""
