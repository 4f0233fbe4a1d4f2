import { readFile, stat } from 'node:fs/promises';
import { readPipe } from '../config/pipe-file.js';
import type { Settings } from '../config/settings.js';

/**
 * The defaults of the web UI, which `/props` tells it: any JSON; `{}` where none are given. Also looks whether the
 * directory that is served instead of the web UI is there.
 *
 * @throws with a message for the user, where llama-server would not start either; and when the file is a pipe or a device
 *   that does not give its text in time, or has no end (`readPipe`)
 */
export async function readWebUiSettings({
  ui,
  staticPath,
  uiConfig,
  uiConfigFile,
}: Pick<Settings, 'ui' | 'staticPath' | 'uiConfig' | 'uiConfigFile'>): Promise<unknown> {
  if (ui && staticPath !== undefined && !(await isDirectory(staticPath))) {
    throw new Error(`--path: '${staticPath}' is no directory that can be read; name one, or leave it out`);
  }
  if (uiConfigFile !== undefined)
    return parse(await textOf(uiConfigFile), `--ui-config-file: '${uiConfigFile}'`);
  return uiConfig === undefined ? {} : parse(uiConfig, '--ui-config: its value');
}

async function isDirectory(path: string): Promise<boolean> {
  return stat(path).then(
    (stats) => stats.isDirectory(),
    () => false,
  );
}

async function textOf(file: string): Promise<string> {
  try {
    const stats = await stat(file);
    const isPlain = stats.isFile() || stats.isDirectory();
    return isPlain ? await readFile(file, 'utf8') : readPipe(file).toString();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`--ui-config-file: cannot be read: ${reason}`, { cause: error });
  }
}

/** A byte order mark is skipped, as llama-server does. */
function parse(text: string, what: string): unknown {
  try {
    return JSON.parse(text.replace(/^\uFEFF/, ''));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`${what} is not JSON (${reason})`, { cause: error });
  }
}
