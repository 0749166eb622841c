"""After the files: render deploy/ with the project's own code, then say what to do next."""

import json
import sys
from pathlib import Path

ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")  # as in pre_gen_project.py

# The project's renderer needs the standard library alone, so that it runs here, where nothing of
# the project is installed. Bytecode would be left behind in the new project.
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path("src").absolute()))
package = __import__(ANSWERS["package_name"] + ".lanes.config", fromlist=["load"])
deploy = __import__(ANSWERS["package_name"] + ".lanes.deploy", fromlist=["render"])
managers = ANSWERS["process_manager"].replace("both", "systemd, supervisor")  # as managers.jinja
project = deploy.Project(
    slug=ANSWERS["project_slug"],
    package=ANSWERS["package_name"],
    process_managers=tuple(name.strip() for name in managers.split(",")),
)
deploy.write(deploy.render(package.load(), project), Path("deploy"))

slug = ANSWERS["project_slug"]
print(
    f"""
{slug}/ is ready. Next:

  cd {slug}
  make workers    # a broker and every lane, in the foreground; Ctrl-C stops them
  make prove      # flood one lane and see that the other does not wait
"""
)
