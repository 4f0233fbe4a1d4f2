import { basename, dirname, isAbsolute, join, sep } from 'node:path';

/**
 * Paths as bytes, for files whose names may be of any: Node's functions on paths take them as text, and what these look
 * at is ASCII, so that they may be given each byte as one character.
 */
const textOf = (path: Buffer): string => path.toString('latin1');
const bytesOf = (path: string): Buffer => Buffer.from(path, 'latin1');

export function childOf(directory: Buffer, name: Buffer | string): Buffer {
  return bytesOf(join(textOf(directory), textOf(Buffer.from(name))));
}

export function parentOf(path: Buffer): Buffer {
  return bytesOf(dirname(textOf(path)));
}

export function nameOf(path: Buffer): Buffer {
  return bytesOf(basename(textOf(path)));
}

/** The directory in which the link `path` says that its target lies, not resolved: it may be a link itself. */
export function directoryOfTarget(path: Buffer, target: Buffer): Buffer {
  const directory = dirname(textOf(target));
  // Not joined by the rules of text, which cut `x/..` where `x` may be a link.
  return bytesOf(isAbsolute(directory) ? directory : `${dirname(textOf(path))}/${directory}`);
}

/** Whether `path` is `directory` or lies below it; both without links in them. */
export function isWithin(path: Buffer, directory: Buffer): boolean {
  const above = textOf(directory);
  return path.equals(directory) || textOf(path).startsWith(above.endsWith(sep) ? above : above + sep);
}
